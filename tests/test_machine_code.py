"""Scheduled modules → executables: what `lower` has decided stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import lower_expression, run_lowered
from tvm import relax

from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler
NATIVE = parse_preset("native")


def reshaped_between(x: relax.Var) -> relax.Expr:
    """A product, its view as an image, and cubic interpolation of that, which lowering keeps apart; sums of it."""
    image = relax.op.reshape(relax.op.matmul(x, x), (1, 1, 8, 8))
    return relax.op.cumsum(relax.op.image.resize2d(image, (8, 13), layout="NCHW", method="cubic"), axis=2)


def test_a_reshape_between_kernels_is_a_view_and_part_of_neither():
    lowered = lower_expression(reshaped_between, [((8, 8), "float32")], NATIVE)
    module, _ = assemble(lowered, [plan_kernel(kernel, NATIVE, None) for kernel in lowered.kernels])
    text = machine_code(module, tvm_target(NATIVE)).as_text()
    assert len(lowered.kernels) == 2 and all(kernel.name in text for kernel in lowered.kernels)
    assert "vm.builtin.reshape" in text and "fused_" not in text


def test_what_lowering_leaves_to_tvm_is_computed():
    def sums(x: relax.Var) -> relax.Expr:
        return relax.op.cumsum(relax.op.reshape(relax.op.matmul(x, x), (4, 16)), axis=1)

    x = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    (result,) = run_lowered(lower_expression(sums, [((8, 8), "float32")], NATIVE), NATIVE, [x])
    np.testing.assert_allclose(result, np.cumsum((x @ x).reshape(4, 16), axis=1), rtol=1e-4, atol=1e-4)
