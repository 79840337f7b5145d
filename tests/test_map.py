"""Kernels without reductions compute what NumPy computes, for every config listed and every target that runs here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    Build,
    Input,
    lower_expression,
    random_array,
    run_drawn,
    run_lowered,
    runnable_targets,
)
from tvm import relax

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.schedules.cpu.map import TEMPLATE
from tvmbridge.targets import Target

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
RUNNABLE = runnable_targets()
EXTENTS = st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 37, 64])
DTYPES = st.sampled_from([F32, F32, F32, "float64", "float16", "int8", "int32", "int64", "uint8", "bool"])


@dataclasses.dataclass(frozen=True)
class Step:
    """One operator: on a Relax expression and on the array that it stands for."""

    relax: Callable[[relax.Expr], relax.Expr]
    numpy: Callable[[np.ndarray], np.ndarray]


def transpose(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axes = data.draw(st.permutations(range(len(shape))))
    return Step(lambda x: op.permute_dims(x, list(axes)), lambda x: x.transpose(axes))


def reshape(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    """Factors of one axis apart, or two neighbours together."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    extent = shape[axis]
    factor = data.draw(st.sampled_from([f for f in range(1, extent + 1) if extent % f == 0] or [1]))
    wanted = (*shape[:axis], factor, extent // factor, *shape[axis + 1 :])
    if len(shape) > 1 and (data.draw(st.booleans()) or len(shape) > 4):
        first = data.draw(st.integers(0, len(shape) - 2))
        wanted = (*shape[:first], shape[first] * shape[first + 1], *shape[first + 2 :])
    return Step(lambda x: op.reshape(x, wanted), lambda x: x.reshape(wanted))


def concat(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axis = data.draw(st.integers(0, len(shape) - 1))
    copies = data.draw(st.integers(2, 3))
    return Step(lambda x: op.concat([x] * copies, axis), lambda x: np.concatenate([x] * copies, axis))


def pad(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    widths = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))) for _ in shape]
    mode = data.draw(st.sampled_from(["constant", "constant", "edge", "reflect"]))
    if mode == "edge":
        widths = [(0, 0)] * (len(shape) - 1) + widths[-1:] if len(shape) > 1 else [(0, 0)]
    if mode == "reflect":
        widths = [(min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(widths, shape, strict=True)]
    flat = [width for pair in widths for width in pair]
    if mode == "reflect":
        return Step(lambda x: op.nn.pad(x, flat, "reflect"), lambda x: np.pad(x, widths, "reflect"))
    return Step(lambda x: op.nn.pad(x, flat, "constant", 0), lambda x: np.pad(x, widths))


def strided_slice(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axis = data.draw(st.integers(0, len(shape) - 1))
    extent = shape[axis]
    begin, step = data.draw(st.integers(0, extent - 1)), data.draw(st.sampled_from([1, 1, 2, 3, 5]))
    end = data.draw(st.integers(begin + 1, extent))
    cut = (slice(None),) * axis + (slice(begin, end, step),)
    return Step(lambda x: op.strided_slice(x, [axis], [begin], [end], [step]), lambda x: x[cut])


def flip(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axis = data.draw(st.integers(0, len(shape) - 1))
    return Step(lambda x: op.flip(x, axis), lambda x: np.flip(x, axis))


def take(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axis = data.draw(st.integers(0, len(shape) - 1))
    indices = np.array(data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=20)))
    return Step(lambda x: op.take(x, relax.const(indices), axis), lambda x: np.take(x, indices, axis))


def tile(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    repeats = [data.draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    return Step(lambda x: op.tile(x, repeats), lambda x: np.tile(x, repeats))


def repeat(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    axis, times = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(1, 3))
    return Step(lambda x: op.repeat(x, times, axis), lambda x: np.repeat(x, times, axis))


def add(data: st.DataObject, shape: tuple[int, ...]) -> Step:
    """A constant that is broadcast along some axes, or that broadcasts along one in front."""
    other = tuple(data.draw(st.sampled_from([1, extent])) for extent in shape)
    other = other[data.draw(st.integers(0, len(shape) - 1)) :]
    if data.draw(st.booleans()) and len(shape) < 5:
        other = (2, *(1,) * (len(shape) - len(other)), *other)
    values = np.random.default_rng(sum(other)).integers(-7, 8, size=other)

    def both(x: np.ndarray) -> np.ndarray:
        return x ^ values.astype(bool) if x.dtype == bool else x + values.astype(x.dtype)

    def built(x: relax.Expr) -> relax.Expr:
        dtype = str(x.ty.dtype)
        constant = relax.const(values.astype(dtype), dtype)
        return op.logical_xor(x, constant) if dtype == "bool" else op.add(x, constant)

    return Step(built, both)


def choose(data: st.DataObject, _shape: tuple[int, ...]) -> Step:
    def built(x: relax.Expr) -> relax.Expr:
        if str(x.ty.dtype) == "bool":
            return op.logical_not(x)
        zero = relax.const(0, str(x.ty.dtype))
        return op.where(op.less(zero, x), x, zero)

    return Step(built, lambda x: ~x if x.dtype == bool else np.where(x > 0, x, np.zeros_like(x)))


def cast(data: st.DataObject, _shape: tuple[int, ...]) -> Step:
    dtype = data.draw(st.sampled_from([F32, "float64", "int32", "int64"]))
    return Step(lambda x: op.astype(x, dtype), lambda x: x.astype(dtype))


STEPS = [transpose, transpose, reshape, concat, pad, strided_slice, flip, take, tile, repeat, add, choose, cast]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_chain_of_operators_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    shape = tuple(data.draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    dtype = data.draw(DTYPES)
    array = random_array(np.random.default_rng(len(shape)), shape, dtype)
    if dtype.startswith("float"):
        array = np.round(array * 4)  # whole numbers: casts and sums of every type are exact
    expected, steps = array, []
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(st.sampled_from(STEPS))(data, expected.shape)
        if step.numpy(expected).size > 30_000:
            continue
        steps.append(step)
        expected = step.numpy(expected)

    def build(x: relax.Expr) -> relax.Expr:
        builder = relax.BlockBuilder.current()
        for step in steps:
            x = builder.emit(step.relax(x))
        return x

    lowered = lower_expression(build, [(shape, dtype)], target)
    output, choice = run_drawn(data, lowered, target, [array], TEMPLATE)
    assert not choice.left
    assert output.dtype == expected.dtype
    np.testing.assert_array_equal(output, expected)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_broadcasting_operands_agree_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    shape = tuple(data.draw(st.lists(EXTENTS, min_size=1, max_size=4)))
    shapes = [tuple(data.draw(st.sampled_from([1, n, n])) for n in shape) for _ in range(3)]
    dtype = data.draw(st.sampled_from([F32, "float64", "int32"]))
    generator = np.random.default_rng(0)
    a, b, c = (random_array(generator, s, dtype) for s in shapes)
    condition = random_array(generator, shapes[data.draw(st.integers(0, 2))], "bool")

    def build(*x: relax.Expr) -> relax.Expr:
        return op.where(x[3], op.maximum(x[0], x[1]), op.multiply(x[2], x[0]))

    arrays = [a, b, c, condition]
    lowered = lower_expression(build, [(x.shape, str(x.dtype)) for x in arrays], target)
    output, choice = run_drawn(data, lowered, target, arrays, TEMPLATE)
    assert not choice.left
    np.testing.assert_array_equal(output, np.where(condition, np.maximum(a, b), c * a))


def nearest(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, 1).repeat(2, 2)


def doubling(x: relax.Expr) -> relax.Expr:
    builder = relax.BlockBuilder.current()
    for _ in range(14):
        x = builder.emit(op.maximum(x, op.multiply(x, relax.const(0.5, F32))))
    return x


INDICES = np.array([[3, 0, 600, 3], [-5, 2, 1, 29]])

# name → (Relax, inputs, NumPy)
KERNELS: dict[str, tuple[Build, list[Input], Callable]] = {
    "rank 0": (lambda x: op.add(x, x), [((), F32)], lambda x: x + x),
    "no element": (lambda x: op.add(x, x), [((3, 0, 5), F32)], lambda x: x + x),
    "lesser of unsigned": (
        lambda x, y: op.minimum(x, y),
        [((21, 13, 1), "uint64"), ((3, 21, 13, 1), "uint64")],
        np.minimum,
    ),
    "compared unsigned": (lambda x, y: op.less(x, y), [((5, 17), "uint32"), ((17,), "uint32")], np.less),
    "large and prime": (lambda x: op.negative(x), [((100_003,), F32)], lambda x: -x),
    "large rows of a prime": (lambda x, y: op.add(x, y), [((211, 307), F32), ((307,), F32)], lambda x, y: x + y),
    "large concat": (
        lambda x, y: op.concat([x, y], -1),
        [((64, 31, 37), F32), ((64, 31, 3), F32)],
        lambda x, y: np.concatenate([x, y], -1),
    ),
    "large split": (lambda x: op.split(x, 3, -1), [((197, 192 * 3), F32)], lambda x: np.split(x, 3, -1)),
    "heads": (
        lambda x: op.permute_dims(op.reshape(x, (1, 131, 12, 64)), (0, 2, 3, 1)),
        [((1, 131, 768), F32)],
        lambda x: x.reshape(1, 131, 12, 64).transpose(0, 2, 3, 1),
    ),
    "image to channels last": (
        lambda x: op.permute_dims(x, (0, 2, 3, 1)),
        [((2, 3, 67, 71), F32)],
        lambda x: x.transpose(0, 2, 3, 1),
    ),
    "image to channels first": (
        lambda x: op.permute_dims(x, (0, 3, 1, 2)),
        [((2, 67, 71, 3), F32)],
        lambda x: x.transpose(0, 3, 1, 2),
    ),
    "transposed sum": (
        lambda x, y, b: op.nn.relu(op.add(op.permute_dims(op.add(x, b), (1, 0)), y)),
        [((67, 131), F32), ((131, 67), F32), ((131,), F32)],
        lambda x, y, b: np.maximum((x + b).T + y, 0),
    ),
    "channel shuffle": (
        lambda x: op.reshape(op.permute_dims(op.reshape(x, (1, 7, 7, 3, 80)), (0, 1, 2, 4, 3)), (1, 7, 7, 240)),
        [((1, 7, 7, 240), F32)],
        lambda x: x.reshape(1, 7, 7, 3, 80).swapaxes(3, 4).reshape(1, 7, 7, 240),
    ),
    "depth to space": (
        lambda x: op.reshape(op.permute_dims(op.reshape(x, (1, 2, 2, 3, 5, 7)), (0, 3, 4, 1, 5, 2)), (1, 3, 10, 14)),
        [((1, 12, 5, 7), F32)],
        lambda x: x.reshape(1, 2, 2, 3, 5, 7).transpose(0, 3, 4, 1, 5, 2).reshape(1, 3, 10, 14),
    ),
    "per channel of three": (
        lambda x, m, s: op.multiply(op.subtract(x, m), s),
        [((17, 19, 3), F32), ((3,), F32), ((17, 19, 1), F32)],
        lambda x, m, s: (x - m) * s,
    ),
    "take rows out of range": (
        lambda x, i: op.take(x, i, 0),
        [((30, 67), F32), ((2, 4), "int64")],
        lambda x, i: x[i.clip(0, 29)],
    ),
    "take columns out of range": (
        lambda x, i: op.take(x, i, 1),
        [((67, 30), F32), ((2, 4), "int64")],
        lambda x, i: x[:, i.clip(0, 29)],
    ),
    "gather elements": (
        lambda x, i: op.gather_elements(x, i, 1),
        [((2, 30), F32), ((2, 4), "int64")],
        lambda x, i: np.take_along_axis(x, i.clip(0, 29), 1),
    ),
    "nearest": (
        lambda x: op.image.resize2d(x, (10, 14), None, "NHWC", "nearest_neighbor", "asymmetric", "floor"),
        [((2, 5, 7, 19), F32)],
        nearest,
    ),
    "nearest, channels first": (
        lambda x: op.image.resize2d(x, (10, 14), None, "NCHW", "nearest_neighbor", "asymmetric", "floor"),
        [((2, 19, 5, 7), F32)],
        lambda x: nearest(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    ),
    "linear": (
        lambda x: op.image.resize2d(x, (9, 13), None, "NHWC", "linear", "align_corners", ""),
        [((1, 5, 7, 19), F32)],
        lambda x: np.stack(
            [
                (x[0, y // 2] + x[0, -(-y // 2)])[np.arange(13) // 2] / 4
                + (x[0, y // 2] + x[0, -(-y // 2)])[-(-np.arange(13) // 2)] / 4
                for y in range(9)
            ]
        )[None],
    ),
    "pad of every axis": (
        lambda x: op.nn.pad(x, [1, 2, 2, 1, 1, 1, 3, 2, 2, 3], "constant", 7.0),
        [((2, 3, 4, 5, 6), F32)],
        lambda x: np.pad(x, [(1, 2), (2, 1), (1, 1), (3, 2), (2, 3)], constant_values=7),
    ),
    "transposed pad of every axis": (
        lambda x: op.permute_dims(op.nn.pad(x, [1, 2, 2, 1, 1, 1, 3, 2, 2, 3]), (0, 4, 3, 2, 1)),
        [((2, 3, 4, 5, 6), F32)],
        lambda x: np.pad(x, [(1, 2), (2, 1), (1, 1), (3, 2), (2, 3)]).transpose(0, 4, 3, 2, 1),
    ),
    "flip of a tile that does not fit it": (
        lambda x: op.flip(op.strided_slice(op.tile(x, (3,)), [0], [0], [97]), 0),
        [((37,), F32)],
        lambda x: np.tile(x, 3)[:97][::-1],
    ),
    "lower triangle": (lambda x: op.tril(x, 1), [((3, 19, 23), F32)], lambda x: np.tril(x, 1)),
    "one hot": (
        lambda i: op.one_hot(
            i, relax.prim_value(tvm.tirx.const(2.0, F32)), relax.prim_value(tvm.tirx.const(1.0, F32)), 30
        ),
        [((2, 4), "int64")],
        lambda i: 1.0 + (i[..., None] == np.arange(30)),
    ),
    "unsigned extremes": (
        lambda x, y: op.minimum(op.maximum(x, y), op.add(x, y)),
        [((5, 67), "uint64"), ((67,), "uint64")],
        lambda x, y: np.minimum(np.maximum(x, y), x + y),
    ),
    "constants": (lambda: op.full((5, 7), relax.const(3.0, F32)), [], lambda: np.full((5, 7), 3.0)),
    "a chain that doubles with every link": (
        doubling,
        [((5, 67), F32)],
        lambda x: np.where(x > 0, x, x * 0.5**14),
    ),
    "an expensive value read thrice": (
        lambda x, y: op.add(op.concat([op.exp(x), op.exp(x)], 0), op.multiply(y, op.concat([op.exp(x)] * 2, 0))),
        [((5, 7), F32), ((10, 7), F32)],
        lambda x, y: np.concatenate([np.exp(x)] * 2) * (1 + y),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_agrees_with_numpy_in_every_config_of_every_template(name: str) -> None:
    build, inputs, reference = KERNELS[name]
    generator = np.random.default_rng(len(name))
    arrays = [INDICES.copy() if d == "int64" else random_array(generator, s, d) for s, d in inputs]
    expected = reference(*arrays)
    for target in RUNNABLE:
        lowered = lower_expression(build, inputs, target)
        for index in range(-1, 3):

            def chosen(kernel: Kernel, target: Target = target, index: int = index) -> tuple[Template, Config]:
                if index < 0:
                    return fitting_templates(kernel, target)[-1], guess_of_last(kernel, target)
                configs = TEMPLATE.configs(kernel, target)
                return TEMPLATE, configs[(len(name) + 2 * index) % len(configs)]

            outputs = run_lowered(lowered, target, arrays, chosen)
            wanted = expected if isinstance(expected, list) else [expected]
            for output, array in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(output, array, rtol=1e-5, atol=1e-5)


def guess_of_last(kernel: Kernel, target: Target) -> Config:
    return fitting_templates(kernel, target)[-1].guess(kernel, target)
