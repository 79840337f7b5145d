"""A candidate is held against the untuned schedule: what it computes has to agree, whatever its weights' order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from kernels import lower_expression, random_array, runnable_targets
from tvm import relax

from tvmbridge.lowering import Kernel
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import Packing, Scheduled, fitting_templates
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References

pytestmark = pytest.mark.compiler

NATIVE = runnable_targets()[0]
DATA = RandomData(0)
Function = Callable[..., object]


class Backwards(Packing):
    """Packs the columns in the wrong order."""

    def pack(self, weight: np.ndarray) -> np.ndarray:
        return super().pack(weight[..., ::-1])


def product(dtype: str = "float32") -> Kernel:
    """A matmul of 24x64 by constant 64x48 weights."""
    weights = random_array(np.random.default_rng(0), (64, 48), "float32").astype(dtype)
    lowered = lower_expression(lambda x: relax.op.matmul(x, relax.const(weights, dtype)), [((24, 64), dtype)], NATIVE)
    (kernel,) = lowered.kernels
    assert kernel.constants
    return kernel


def compiled(kernel: Kernel) -> tuple[Scheduled, Function]:
    template = fitting_templates(kernel, NATIVE)[0]
    scheduled = template.schedule(kernel, NATIVE, template.guess(kernel, NATIVE))
    module = tvm.IRModule({"main": scheduled.function.with_attr("global_symbol", "main")})
    return scheduled, machine_code(module, tvm_target(NATIVE)).mod["main"]


def elementwise(dtype: str) -> Kernel:
    (kernel,) = lower_expression(lambda x: relax.op.negative(x), [((5, 7), dtype)], NATIVE).kernels
    return kernel


def computing(function: Callable[[np.ndarray], np.ndarray]) -> tuple[Scheduled, Function]:
    """A schedule of `elementwise` that computes something of its own."""
    return Scheduled(tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0))), lambda x, y: y.copyfrom(function(x.numpy()))


def why_wrong(folder: Path, kernel: Kernel, candidate: tuple[Scheduled, Function], untuned: object) -> str | None:
    return References(folder).why_wrong(kernel, *candidate, DATA, untuned)  # type: ignore[arg-type]


def test_another_order_of_the_weights_is_the_same_result(tmp_path: Path) -> None:
    kernel = product()
    scheduled, function = compiled(kernel)
    assert scheduled.packings
    (index,) = kernel.constants

    def plain(*operands: tvm.runtime.Tensor) -> None:
        x, w = operands[1 - index if index < 2 else 0], operands[index]
        operands[-1].copyfrom(x.numpy() @ w.numpy())

    unpacked = (Scheduled(scheduled.function), plain)
    assert why_wrong(tmp_path, kernel, (scheduled, function), lambda: unpacked) is None
    packing = scheduled.packings[0]
    shuffled = (Scheduled(scheduled.function, (Backwards(packing.parameter, packing.lanes),)), function)
    assert "wrong result" in (why_wrong(tmp_path, kernel, shuffled, pytest.fail) or "")


def test_the_untuned_outputs_are_computed_once(tmp_path: Path) -> None:
    kernel, calls = elementwise("float32"), []

    def untuned() -> tuple[Scheduled, Function]:
        calls.append(1)
        return computing(lambda x: -x)

    for _ in range(3):
        assert why_wrong(tmp_path, kernel, computing(lambda x: -1 * x), untuned) is None
    assert len(calls) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bfloat16"])
def test_a_wrong_element_is_found_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    kernel = elementwise(dtype)

    def wrong(x: np.ndarray) -> np.ndarray:
        y = -x
        y[4, 6] = y[4, 6] + np.asarray(3).astype(y.dtype)
        return y

    assert why_wrong(tmp_path, kernel, computing(lambda x: -x), lambda: computing(lambda x: -x)) is None
    assert "wrong result" in (why_wrong(tmp_path, kernel, computing(wrong), pytest.fail) or "")


@given(st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_where_the_reference_is_is_wrong(value: float) -> None:
    import tempfile

    def spoil(x: np.ndarray) -> np.ndarray:
        y = -x
        y[0, 0] = value
        return y

    kernel = elementwise("float32")
    with tempfile.TemporaryDirectory() as name:
        untuned = computing(lambda x: -x)
        assert "not finite" in (why_wrong(Path(name), kernel, computing(spoil), lambda: untuned) or "")
    with tempfile.TemporaryDirectory() as name:
        assert why_wrong(Path(name), kernel, computing(lambda x: -x), lambda: computing(spoil)) is None
