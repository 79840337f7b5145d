"""The rows template computes what NumPy does in float64, whatever it reduces, in every config, on every target."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    Build,
    compile_function,
    lower_expression,
    plan,
    random_array,
    run_drawn,
    run_function,
    runnable_targets,
)
from tvm import relax

from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules.cpu.rows import TEMPLATE
from tvmbridge.schedules.reading.rows import read_rows
from tvmbridge.targets import Target

pytestmark = pytest.mark.compiler

op = relax.op
RUNNABLE = runnable_targets()
F32 = "float32"
TOLERANCE = {"float64": 1e-11, F32: 1e-5, "float16": 2e-3}
# Around the lanes of a vector and of several, primes, one.
EXTENTS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 97, 131])
LONG = st.sampled_from([197, 256, 509, 1000, 1024, 2053])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """One to four axes, one of them perhaps long, of few enough elements for an exact reference."""
    shape = [draw(EXTENTS) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(LONG)
    while np.prod(shape) > 60_000:
        shape[int(np.argsort(shape)[-2])] = draw(st.sampled_from([1, 2, 3, 5]))
    return tuple(shape)


def run_rows(data: st.DataObject, lowered: LoweredModel, target: Target, x: np.ndarray) -> np.ndarray:
    """The output for drawn configs of the rows template, which must take each kernel with a reduction."""
    output, choice = run_drawn(data, lowered, target, [x], TEMPLATE)
    assert not [name for name in choice.left if any(word in name for word in REDUCING)]
    return output


REDUCING = ("softmax", "norm", "sum", "mean", "max", "min", "prod", "variance", "std")


def assert_close(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    assert ours.shape == reference.shape
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    np.testing.assert_allclose(ours.astype("float64"), reference, rtol=0, atol=tolerance * scale)


REDUCTIONS: dict[str, tuple[Callable, Callable]] = {
    "sum": (op.sum, np.sum),
    "mean": (op.mean, np.mean),
    "max": (op.max, np.max),
    "min": (op.min, np.min),
    "variance": (op.variance, np.var),
    "L2 norm": (
        lambda x, axis, keepdims: op.sqrt(op.sum(op.multiply(x, x), axis, keepdims)),
        lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
    ),
    "sum of exponentials": (
        lambda x, axis, keepdims: op.log(op.sum(op.exp(x), axis, keepdims)),
        lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims)),
    ),
}


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_reduction_agrees_with_numpy_over_any_axes(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from([F32, F32, "float64", "float16"]))
    shape = data.draw(shapes())
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    keepdims = data.draw(st.booleans())
    ours, numpys = REDUCTIONS[data.draw(st.sampled_from(sorted(REDUCTIONS)))]
    x = random_array(np.random.default_rng(data.draw(st.integers(0, 1000))), shape, dtype)
    lowered = lower_expression(lambda x: ours(x, axes, keepdims), [(shape, dtype)], target)
    output = run_rows(data, lowered, target, x)
    assert_close(output, numpys(x.astype("float64"), axis=tuple(axes), keepdims=keepdims), TOLERANCE[dtype])


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_a_reduction_of_integers_is_exact(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from(["int32", "int64"]))
    shape = data.draw(shapes())
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    name = data.draw(st.sampled_from(["sum", "prod", "max", "min"]))
    x = random_array(np.random.default_rng(data.draw(st.integers(0, 1000))), shape, dtype)
    lowered = lower_expression(lambda x: getattr(op, name)(x, axes), [(shape, dtype)], target)
    output = run_rows(data, lowered, target, x)
    wrapped = {"dtype": dtype} if name in ("sum", "prod") else {}
    assert np.array_equal(output, getattr(np, name)(x, axis=tuple(axes), **wrapped))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_softmax_agrees_with_numpy_along_any_axis_with_masks_and_large_logits(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from([F32, F32, "float64", "float16"]))
    shape = data.draw(shapes())
    axis = data.draw(st.integers(0, len(shape) - 1))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, shape, dtype) * data.draw(st.sampled_from([1, 50, 1000]))
    x += data.draw(st.sampled_from([0, 3e4]))
    if data.draw(st.booleans()):
        masked = generator.random(shape) < 0.5
        np.moveaxis(masked, axis, 0)[0] = False  # no row is masked altogether
        x[masked] = -np.inf
    logarithm = data.draw(st.booleans())
    build = op.nn.log_softmax if logarithm else op.nn.softmax
    lowered = lower_expression(lambda x: build(x, axis), [(shape, dtype)], target)
    output = run_rows(data, lowered, target, x)
    exact = x.astype("float64")
    shifted = exact - exact.max(axis=axis, keepdims=True)
    if logarithm:
        reference = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        assert np.array_equal(np.isneginf(output), np.isneginf(reference))
        output, reference = np.maximum(output, -60000), np.maximum(reference, -60000)
        np.testing.assert_allclose(output.astype("float64"), reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    else:
        assert_close(output, softmax(exact, axis), TOLERANCE[dtype])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_row_masked_altogether_gives_what_the_unscheduled_function_gives(axis: int) -> None:
    target = RUNNABLE[0]
    x = random_array(np.random.default_rng(0), (19, 37), F32)
    np.moveaxis(x, axis, 0)[:, 5] = -np.inf
    (kernel,) = lower_expression(lambda x: op.nn.softmax(x, axis), [(x.shape, F32)], target).kernels
    scheduled = TEMPLATE.schedule(kernel, target, TEMPLATE.guess(kernel, target)).function
    (ours,), (plain,) = (run_function(function, target, [x]) for function in (scheduled, kernel.function))
    assert np.isnan(plain).any()
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-7)


def normalised(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_normalisation_agrees_with_numpy(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from([F32, F32, "float16"]))
    shape = (data.draw(st.sampled_from([1, 2, 5])), *data.draw(shapes()))
    axes = tuple(range(data.draw(st.integers(1, len(shape) - 1)), len(shape)))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, shape, dtype) + data.draw(st.sampled_from([0, 10]))
    scale, shift = (random_array(generator, shape[axes[0] :], dtype) for _ in range(2))
    root_mean_square = data.draw(st.booleans())

    def build(x: relax.Expr) -> relax.Expr:
        if root_mean_square:
            return op.nn.rms_norm(x, relax.const(scale, dtype), list(axes), 1e-5)
        return op.nn.relu(op.nn.layer_norm(x, relax.const(scale, dtype), relax.const(shift, dtype), list(axes), 1e-5))

    lowered = lower_expression(build, [(shape, dtype)], target)
    output = run_rows(data, lowered, target, x)
    exact = x.astype("float64")
    if root_mean_square:
        reference = exact / np.sqrt((exact**2).mean(axis=axes, keepdims=True) + 1e-5) * scale
    else:
        reference = np.maximum(normalised(exact, axes) * scale + shift, 0)
    assert_close(output, reference, 10 * TOLERANCE[dtype])


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_group_norm_agrees_with_numpy(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    groups, members = data.draw(st.sampled_from([1, 2, 5, 8])), data.draw(st.sampled_from([1, 2, 3, 16, 17]))
    shape = (data.draw(st.sampled_from([1, 3])), groups * members, *(data.draw(EXTENTS) for _ in range(2)))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x, scale, shift = (random_array(generator, s, F32) for s in (shape, shape[1:2], shape[1:2]))

    def build(x: relax.Expr) -> relax.Expr:
        return op.nn.group_norm(x, relax.const(scale, F32), relax.const(shift, F32), groups, 1, [2, 3], 1e-2)

    lowered = lower_expression(build, [(shape, F32)], target)
    output = run_rows(data, lowered, target, x)
    grouped = x.astype("float64").reshape(shape[0], groups, -1)
    mean, variance = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
    reference = ((grouped - mean) / np.sqrt(variance + 1e-2)).reshape(shape)
    reference = reference * scale[:, None, None] + shift[:, None, None]
    assert_close(output, reference, 10 * TOLERANCE[F32])


def only_kernel(build: Build, *inputs: tuple[tuple[int, ...], str]) -> Kernel:
    (kernel,) = lower_expression(build, inputs, RUNNABLE[0]).kernels
    return kernel


def test_a_row_is_what_all_stages_are_independent_over() -> None:
    rows = read_rows(only_kernel(lambda x: op.nn.softmax(x, 2), ((2, 3, 50, 7), F32)).function)
    assert rows is not None and rows.across is not None
    assert [axis.extent for axis in rows.axes] == [6, 7] and rows.across.extent == 7
    assert [[axis.extent for axis in step.axes] for step in rows.steps] == [[50]] * 4


def test_neighbouring_axes_are_reduced_as_one() -> None:
    rows = read_rows(only_kernel(lambda x: op.mean(x, [1, 2]), ((2, 7, 9, 48), F32)).function)
    assert rows is not None
    assert [axis.extent for axis in rows.axes] == [2, 48] and rows.across is rows.axes[1]
    assert [axis.extent for axis in rows.steps[0].reduced] == [63]


def test_an_exponential_is_computed_once_and_divided_by_once_a_row() -> None:
    rows = read_rows(only_kernel(lambda x: op.nn.softmax(x), ((40, 50), F32)).function)
    assert rows is not None
    text = "\n".join(str(step.value) for step in rows.steps)
    assert sum(step.held and bool(step.inner) for step in rows.steps) == 1
    assert re.search(r"T_softmax_exp\[.*\] \* \(T.float32\(1.0\) / T_softmax_expsum", text)


@pytest.mark.parametrize(
    "build, inputs",
    [
        (lambda x: op.exp(x), [((8, 8), F32)]),
        (lambda x: op.argmax(x, 1), [((8, 8), F32)]),
        (lambda x, y: op.matmul(x, y), [((8, 8), F32)] * 2),
        (lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), layout="NHWC"), [((1, 9, 9, 8), F32)]),
        (lambda x, w: op.nn.conv2d(x, w), [((1, 4, 9, 9), F32), ((8, 4, 3, 3), F32)]),
    ],
)
def test_what_is_no_reduction_over_whole_axes_is_left_to_others(build: Build, inputs: list) -> None:
    kernels = lower_expression(build, inputs, RUNNABLE[0]).kernels
    assert kernels and not any(TEMPLATE.fits(kernel, RUNNABLE[0]) for kernel in kernels)


def assembly(function: tvm.tirx.PrimFunc, target: Target) -> str:
    return compile_function(function, target).inspect_source("asm")


def test_a_long_sum_is_vector_additions_to_as_many_accumulators_as_the_config_says() -> None:
    target = RUNNABLE[0]
    kernel = only_kernel(lambda x: op.sum(x, [1]), ((64, 16384), F32))
    accumulators = {}
    for config in TEMPLATE.configs(kernel, target):
        code = assembly(plan(kernel, target, TEMPLATE, config).scheduled.function, target)
        accumulators[config["accumulators"]] = accumulated_registers(code, target)
    assert accumulators == {count: count for count in (1, 2, 4, 8)}


def accumulated_registers(code: str, target: Target) -> int:
    """The most vector registers of full width that one loop adds memory to."""
    if target.machine == "aarch64":
        addition = re.compile(r"fadd\s+(v\d+)\.4s, (?:\1\.4s, v\d+|v\d+\.4s, \1)\.4s")
    else:
        letter = {512: "z", 256: "y", 128: "x"}[target.vector_bits]
        addition = re.compile(rf"v?addps\s+[^%\n]*\(.*\), (?:%{letter}mm\d+, )?(%{letter}mm\d+)")
    loops = re.split(r"^\.?\w+:|^\s+(?:j\w+|b\.\w+)\s.*$", code, flags=re.MULTILINE)
    return max(len(set(addition.findall(body))) for body in loops)
