"""Matmul and convolution agree with NumPy in every config, and their inner loops are multiply-adds of vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    assert_close,
    compile_function,
    guess,
    lower_expression,
    random_array,
    run_drawn,
    run_lowered,
    runnable_targets,
)
from tvm import relax

from tvmbridge.schedules import Packing
from tvmbridge.schedules.loops.expressions import number
from tvmbridge.schedules.loops.tiling import Blocks, cut, within
from tvmbridge.schedules.reading.product import read_product
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
RUNNABLE = runnable_targets()
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 31, 32, 48, 64])
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-2}


def constant(*shape: int, dtype: str = F32, seed: int = 0) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(seed), shape, dtype), dtype)


TAILS: dict[str, tuple[Callable, Callable]] = {
    "nothing": (lambda y: y, lambda y: y),
    "relu": (lambda y: op.nn.relu(y), lambda y: np.maximum(y, 0)),
    "silu": (lambda y: op.multiply(y, op.sigmoid(y)), lambda y: y / (1 + np.exp(-y))),
    "diamond": (
        lambda y: op.add(op.exp(op.negative(op.abs(y))), op.nn.relu(y)),
        lambda y: np.exp(-np.abs(y)) + np.maximum(y, 0),
    ),
    "cast": (lambda y: op.astype(y, "float64"), lambda y: y),
}


@given(st.integers(1, 500), st.integers(1, 40))
def test_tiles_cover_an_extent_evenly(extent: int, largest: int) -> None:
    tiles = cut(extent, largest)
    assert sum(tiles.sizes) == extent and min(tiles.sizes) >= 1 and max(tiles.sizes) - min(tiles.sizes) <= 1
    assert tiles.size <= largest and tiles.count == -(-extent // largest)


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 8, 16]))
def test_vectors_cover_an_extent_and_stay_within_it(extent: int, widest: int) -> None:
    vectors = Blocks(extent, within(extent, widest))
    lanes = vectors.size
    assert lanes == widest or widest > extent >= lanes > extent // 2
    starts = [int(vectors.start(number(index))) for index in range(vectors.count)]
    assert {start + lane for start in starts for lane in range(lanes)} == set(range(extent))


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 9), st.integers(1, 3))
def test_packing_puts_each_vector_of_columns_first(leading: list[int], lanes: int, more: int, groups: int) -> None:
    columns = lanes + more
    weight = np.arange(math.prod(leading) * groups * columns).reshape(*leading, groups * columns)
    packing = Packing(0, lanes, groups)
    packed = packing.pack(weight)
    assert packed.flags.c_contiguous and packed.shape == packing.shape(weight.shape)
    each = -(-columns // lanes)
    for group in range(groups):
        for column in range(columns):
            vector = min(column // lanes, each - 1)
            lane = column - min(vector * lanes, columns - lanes)
            expected = weight[..., group * columns + column]
            np.testing.assert_array_equal(packed[group * each + vector, ..., lane], expected)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_matmul_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from([F32, F32, F32, "float64", "float16"]))
    rows, depth, columns = data.draw(SIZES), data.draw(SIZES), data.draw(SIZES)
    batch = data.draw(st.sampled_from([(), (), (3,), (2, 5)]))
    rhs_batch = data.draw(st.sampled_from([(), batch, (1,) * len(batch)]))
    weights_are_constant = data.draw(st.booleans())
    tail, tail_reference = TAILS[data.draw(st.sampled_from(sorted(TAILS)))]
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    left = random_array(generator, (*batch, rows, depth), dtype)
    right = random_array(generator, (*rhs_batch, depth, columns), dtype)
    bias = random_array(generator, (columns,), dtype)

    def build(x: relax.Expr, w: relax.Expr | None = None) -> relax.Expr:
        w = relax.const(right, dtype) if w is None else w
        return tail(op.add(op.matmul(x, w), relax.const(bias, dtype)))

    inputs, arrays = [(left.shape, dtype)], [left]
    if not weights_are_constant:
        inputs.append((right.shape, dtype))
        arrays.append(right)
    lowered = lower_expression(build, inputs, target)
    output, _ = run_drawn(data, lowered, target, arrays)
    product = left.astype("float64") @ right.astype("float64") + bias.astype("float64")
    assert_close(output, tail_reference(product), TOLERANCE[dtype] * math.sqrt(depth))


def conv2d_reference(
    x: np.ndarray, w: np.ndarray, strides: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> np.ndarray:
    top, left, bottom, right = padding
    x = np.pad(x.astype("float64"), ((0, 0), (0, 0), (top, bottom), (left, right)))
    out_channels, per_group, window_y, window_x = w.shape
    y_size = (x.shape[2] - dilation[0] * (window_y - 1) - 1) // strides[0] + 1
    x_size = (x.shape[3] - dilation[1] * (window_x - 1) - 1) // strides[1] + 1
    result = np.zeros((x.shape[0], out_channels, y_size, x_size))
    for channel in range(out_channels):
        group = channel // (out_channels // groups)
        for dy in range(window_y):
            for dx in range(window_x):
                y0, x0 = dy * dilation[0], dx * dilation[1]
                part = x[:, group * per_group : (group + 1) * per_group, y0:, x0:]
                part = part[
                    :, :, : (y_size - 1) * strides[0] + 1 : strides[0], : (x_size - 1) * strides[1] + 1 : strides[1]
                ]
                result[:, channel] += np.einsum("ncyx,c->nyx", part, w[channel, :, dy, dx].astype("float64"))
    return result


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_conv2d_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    batch = data.draw(st.sampled_from([1, 1, 2, 3]))
    height, width = (data.draw(st.sampled_from([1, 2, 3, 5, 7, 8, 13, 14])) for _ in range(2))
    groups = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
    in_channels, out_channels = groups * data.draw(st.sampled_from([1, 3, 8])), groups * data.draw(SIZES)
    window = [data.draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)]
    dilation = [data.draw(st.sampled_from([1, 1, 2])) for _ in range(2)]
    strides = [data.draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)]
    reach = [dilation[i] * (window[i] - 1) + 1 for i in range(2)]
    padding = [data.draw(st.sampled_from([0, 0, 1, 2])) for _ in range(4)]
    padding[0] += max(0, reach[0] - height - padding[0] - padding[2])
    padding[1] += max(0, reach[1] - width - padding[1] - padding[3])
    tail, tail_reference = TAILS[data.draw(st.sampled_from(sorted(TAILS)))]
    weights_are_constant = data.draw(st.booleans())
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, (batch, in_channels, height, width), F32)
    w = random_array(generator, (out_channels, in_channels // groups, *window), F32)

    def build(x: relax.Expr, weights: relax.Expr | None = None) -> relax.Expr:
        weights = relax.const(w, F32) if weights is None else weights
        return tail(op.nn.conv2d(x, weights, strides, padding, dilation, groups))

    arrays = [x] if weights_are_constant else [x, w]
    lowered = lower_expression(build, [(array.shape, F32) for array in arrays], target)
    output, _ = run_drawn(data, lowered, target, arrays)
    reference = tail_reference(conv2d_reference(x, w, strides, padding, dilation, groups))
    assert_close(output, reference, TOLERANCE[F32] * math.sqrt(w[0].size))


def test_a_copy_before_a_pointwise_convolution_is_gone() -> None:
    lowered = lower_expression(lambda x: op.nn.conv2d(x, constant(32, 8, 1, 1)), [((1, 8, 7, 7), F32)], RUNNABLE[0])
    (kernel,) = (k for k in lowered.kernels if k.key.startswith("conv2d"))
    template, config = guess(kernel, RUNNABLE[0])
    assert template.name == "contraction"
    assert "pad_temp" in kernel.function.script()
    assert "pad_temp" not in template.schedule(kernel, RUNNABLE[0], config).function.script()


@pytest.mark.parametrize(("groups", "expected"), [(1, 1), (2, 2), (6, 6), (24, None)])
def test_groups_are_found_and_a_depthwise_convolution_is_not_a_product(groups: int, expected: int | None) -> None:
    weight = constant(24, 24 // groups, 3, 3)
    lowered = lower_expression(
        lambda x: op.nn.conv2d(x, weight, padding=1, groups=groups), [((1, 24, 9, 9), F32)], RUNNABLE[0]
    )
    (kernel,) = (kernel for kernel in lowered.kernels if "conv2d" in kernel.name)
    product = read_product(kernel)
    assert (product and product.groups) == expected


VECTOR_PRODUCTS = {
    "a matrix and a vector": ([(31, 17), (17,)], "rows"),
    "a matrix and one column": ([(31, 17), (17, 1)], "rows"),
    "two vectors": ([(67,), (67,)], "rows"),
    "one row and one column": ([(1, 67), (67, 1)], "rows"),
    "a vector and a matrix": ([(17,), (17, 31)], "contraction"),
    "one row and a matrix": ([(1, 17), (17, 31)], "contraction"),
    "two matrices": ([(3, 17), (17, 31)], "contraction"),
}


@pytest.mark.parametrize("dtype", [F32, "float16"])
@pytest.mark.parametrize("shapes", VECTOR_PRODUCTS)
def test_a_product_that_reads_a_matrix_once_runs_along_its_memory(shapes: str, dtype: str) -> None:
    inputs, template = VECTOR_PRODUCTS[shapes]
    generator = np.random.default_rng(0)
    arrays = [random_array(generator, shape, dtype) for shape in inputs]
    lowered = lower_expression(op.matmul, [(shape, dtype) for shape in inputs], RUNNABLE[0])
    (output,) = run_lowered(lowered, RUNNABLE[0], arrays)
    assert_close(output, arrays[0].astype("float64") @ arrays[1].astype("float64"), TOLERANCE[dtype] * 8)
    assert guess(lowered.kernels[0], RUNNABLE[0])[0].name == template


def test_a_factor_that_is_one_number_is_a_factor() -> None:
    def build(x: relax.Expr, factor: relax.Expr) -> relax.Expr:
        return op.sum(op.multiply(x, factor), [0], keepdims=True)

    arrays = [random_array(np.random.default_rng(0), shape, F32) for shape in ((67,), ())]
    lowered = lower_expression(build, [((67,), F32), ((), F32)], RUNNABLE[0])
    (output,) = run_lowered(lowered, RUNNABLE[0], arrays)
    assert_close(output, arrays[0].sum(keepdims=True) * arrays[1], 1e-5)
    assert len(lowered.kernels) == 1


def test_a_transpose_behind_a_matmul_is_part_of_its_store() -> None:
    def build(x: relax.Expr) -> relax.Expr:
        return op.permute_dims(op.nn.relu(op.matmul(x, constant(64, 37))), [0, 2, 1])

    lowered = lower_expression(build, [((3, 41, 64), F32)], RUNNABLE[0])
    assert guess(lowered.kernels[0], RUNNABLE[0])[0].name == "contraction"
    x = random_array(np.random.default_rng(1), (3, 41, 64), F32)
    (output,) = run_lowered(lowered, RUNNABLE[0], [x])
    reference = np.maximum(x.astype("float64") @ constant(64, 37).value.numpy(), 0).transpose(0, 2, 1)
    assert_close(output, reference, 1e-5)


INNER_LOOPS = [
    ("arm:cortex-a72", r"\tfmla\tv\d+\.4s", r"\t(fmadd|fmul|fadd)\ts\d"),
    ("x86:x86-64-v3", r"\tvfmadd\d+ps\t.*%ymm", r"\tv(fmadd\d+|mul|add)ss\t"),
    ("x86:x86-64-v4", r"\tvfmadd\d+ps\t.*%zmm", r"\tv(fmadd\d+|mul|add)ss\t"),
]


@pytest.mark.parametrize(("preset", "vector", "scalar"), INNER_LOOPS, ids=lambda value: value)
@pytest.mark.parametrize("rows", [24, 197], ids=["even", "ragged"])
def test_the_inner_loop_is_vector_multiply_adds_only(preset: str, vector: str, scalar: str, rows: int) -> None:
    target = parse_preset(preset)
    lowered = lower_expression(lambda x: op.matmul(x, constant(128, 96)), [((rows, 128), F32)], target)
    (kernel,) = lowered.kernels
    template, config = guess(kernel, target)
    assembly = compile_function(template.schedule(kernel, target, config).function, target).inspect_source("asm")
    expected = int(config["rows"]) * int(config["vectors"]) * int(config["unroll"])
    # Where rows are ragged there is a second loop, of tiles with a row less.
    innermost = max(loop_bodies(assembly), key=lambda body: len(re.findall(vector, body)))
    assert len(re.findall(vector, innermost)) == expected
    # A sum that does not fit the registers would be stored on the stack and loaded again.
    assert not re.findall(r"%[yz]mm\d+, .*\(%r|\tst[rp]\tq", innermost)
    assert re.findall(scalar, assembly) == []


def loop_bodies(assembly: str) -> list[str]:
    """What lies between each label and the last jump back to it, where no other label lies between."""
    parts = re.split(r"^(\.L\w+):", assembly, flags=re.MULTILINE)
    bodies = []
    for label, text in zip(parts[1::2], parts[2::2], strict=True):
        back = re.search(rf"\t(j\w+|b\.\w+|cbn?z\t\w+,)\s+{re.escape(label)}\b", text)
        bodies.extend([text[: back.start()]] if back else [])
    return bodies
