"""Branches and planned memory: whichever branch is taken, what comes after it has memory of its own."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from kernels import imported, run_lowered
from tvm.script import ir as I  # noqa: N812 -- as TVM writes it
from tvm.script import relax as R  # noqa: N812

from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler
NATIVE = parse_preset("native")


@I.ir_module
class Branches:
    """tanh(exp(x)) or -|x|, or a choice of two inside; then a product with sqrt(|x|), whose memory was a branch's."""

    @R.function
    def main(x: R.Tensor((4, 4), "float32"), outer: R.Tensor((), "bool"), inner: R.Tensor((), "bool")):  # noqa: N805
        if outer:
            a = R.exp(x)
            s = R.cumsum(a, axis=0)
            y = R.tanh(s)
        else:
            if inner:
                b = R.abs(x)
                t = R.cumsum(b, axis=1)
                m = R.negative(t)
            else:
                c = R.matmul(x, x)
                u = R.cumsum(c, axis=0)
                m = R.cos(u)
            n = R.cumsum(m, axis=1)
            y = R.sin(n)
        z = R.matmul(x, R.permute_dims(x))
        w = R.matmul(z, y)
        return w


def expected(x: np.ndarray, outer: bool, inner: bool) -> np.ndarray:
    if outer:
        y = np.tanh(np.exp(x).cumsum(axis=0))
    else:
        m = -np.abs(x).cumsum(axis=1) if inner else np.cos((x @ x).cumsum(axis=0))
        y = np.sin(m.cumsum(axis=1))
    return x @ x.T @ y


@pytest.mark.parametrize(("outer", "inner"), [(True, True), (False, True), (False, False)])
def test_memory_is_there_whichever_branch_is_taken(outer, inner):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("float32")
    lowered = lower(imported(tvm.IRModule({"main": Branches["main"]})), NATIVE)
    (result,) = run_lowered(lowered, NATIVE, [x, np.array(outer), np.array(inner)])
    np.testing.assert_allclose(result, expected(x, outer, inner), rtol=1e-4, atol=1e-4)
