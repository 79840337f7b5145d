"""Pooling, and its inverse.

ONNX says how many windows there are; where the last one goes beyond the pads (ceil_mode), the tensor is padded up to
there. What a window counts is known for each place, so an average is a sum over a constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax, te, tirx

from tvmbridge.frontend.converters.convolutions import Window, find_window
from tvmbridge.frontend.converters.reductions import cast
from tvmbridge.frontend.operator import Converter, Operator

_MAX = {1: relax.op.nn.max_pool1d, 2: relax.op.nn.max_pool2d, 3: relax.op.nn.max_pool3d}
_AVERAGE = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}


def _find_windows(op: Operator) -> tuple[Window, Window]:
    """The window as ONNX defines it, and with the tensor padded up to the end of the last one."""
    window, made = find_window(op, op.attribute("kernel_shape"), op.shape(0)[2:]), op.result_shape()[2:]
    if len(made) not in _MAX:
        op.refuse(f"a pool over {len(made)} axes")
    after = []
    for axis, count in enumerate(made):
        last = (count - 1) * window.strides[axis] + window.reach[axis] - window.given[axis] - window.before[axis]
        after.append(last if last > window.after[axis] else window.after[axis])
    return window, dataclasses.replace(window, after=tuple(after))


def _pool(
    build: Callable[..., relax.Expr], x: relax.Expr, window: Window, *, count_include_pad: bool = False
) -> relax.Expr:
    return build(x, window.kernel, window.strides, window.pads, window.dilations, False, count_include_pad)


def _max_pool(op: Operator) -> tuple[relax.Expr, relax.Expr | None]:
    _, window = _find_windows(op)
    values = op.emit(_pool(_MAX[len(window.given)], op.input(0), window))
    if len(op.used) < 2 or not op.used[1]:
        return values, None
    column_major = bool(op.attribute("storage_order", 0))
    places = op.result_shape()[2:]
    indices = op.compute(lambda x: _positions(x, window, places, column_major), op.input(0), name="max_pool_indices")
    return values, indices


def _positions(x: te.Tensor, window: Window, places: tuple[int, ...], column_major: bool) -> te.Tensor:
    """Where in the whole tensor each window's maximum is, the first of equal ones in the order of rows."""
    batch, channels = (int(axis) for axis in x.shape[:2])
    rank, given, plane = len(places), window.given, math.prod(window.given)
    taps = [te.reduce_axis((0, count), name=f"tap{axis}") for axis, count in enumerate(window.kernel)]

    def better(left: tuple[tvm.ir.Expr, ...], right: tuple[tvm.ir.Expr, ...]) -> tuple[tvm.ir.Expr, ...]:
        above = tirx.any(right[1] > left[1], tirx.all(right[1] == left[1], right[0] < left[0]))
        taken = tirx.all(right[0] >= 0, tirx.any(left[0] < 0, above))
        return tirx.Select(taken, right[0], left[0]), tirx.Select(taken, right[1], left[1])

    def nothing(index: str, value: str) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        return tirx.const(-1, index), tirx.min_value(value)

    def element(image: tvm.ir.Expr, channel: tvm.ir.Expr, *place: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        flat, inside, index = tirx.const(0, "int64"), [], []
        for axis in range(rank):
            at = place[axis] * window.strides[axis] - window.before[axis] + taps[axis] * window.dilations[axis]
            inside.append(tirx.all(at >= 0, at < given[axis]))
            index.append(tirx.max(tirx.min(at, given[axis] - 1), 0))
            flat = flat * given[axis] + at.astype("int64")
        return tirx.Select(tirx.all(*inside), flat, tirx.const(-1, "int64")), x(image, channel, *index)

    reducer = te.comm_reducer(better, nothing, name="first_maximum")
    shape = (batch, channels, *places)
    found, _ = te.compute(shape, lambda *i: reducer(element(*i), axis=taps), name="first_maxima")

    def position(image: tvm.ir.Expr, channel: tvm.ir.Expr, *place: tvm.ir.Expr) -> tvm.ir.Expr:
        flat = found(image, channel, *place)
        if column_major:
            rows, flat = flat, tirx.const(0, "int64")
            for axis in range(rank):
                own = rows // math.prod(given[axis + 1 :]) % given[axis]
                flat = flat + own * math.prod(given[:axis])
        return flat + (image * channels + channel).astype("int64") * plane

    return te.compute(shape, position, name="positions")


def _counts(window: Window, places: tuple[int, ...], *, pads: bool) -> np.ndarray:
    """How many elements each window has, with those in the pads or without; at least 1."""
    product = np.ones((1,) * len(places))
    for axis, count in enumerate(places):
        starts = np.arange(count) * window.strides[axis] - window.before[axis]
        at = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        end = window.given[axis] + (window.after[axis] if pads else 0)
        counted = ((at < end) & (pads | (at >= 0))).sum(1)
        product = product * counted.reshape([-1 if i == axis else 1 for i in range(len(places))])
    return np.maximum(product, 1)


def _average_pool(op: Operator) -> relax.Expr:
    window, padded = _find_windows(op)
    pads, build = bool(op.attribute("count_include_pad", 0)), _AVERAGE[len(window.given)]
    if padded == window:
        return _pool(build, op.input(0), window, count_include_pad=pads)
    mean = op.emit(_pool(build, op.input(0), padded, count_include_pad=True))
    factor = math.prod(window.kernel) / _counts(window, op.result_shape()[2:], pads=pads)
    return relax.op.multiply(mean, op.const(factor[None, None]))


def _raised(op: Operator, x: relax.Expr, power: float) -> relax.Expr:
    """A tensor of no negative number to a power; TVM warns of its own power operator above 2."""
    if power == round(power) and 1 <= power <= 16:
        made = x
        for _ in range(round(power) - 1):
            made = op.emit(relax.op.multiply(made, x))
        return made
    return op.emit(relax.op.power(x, relax.const(power, str(x.ty.dtype))))


def _root(op: Operator, x: relax.Expr, power: float) -> relax.Expr:
    if power == 1:
        return x
    return (
        op.emit(relax.op.sqrt(x)) if power == 2 else op.emit(relax.op.power(x, relax.const(1 / power, str(x.ty.dtype))))
    )


def _lp_pool(op: Operator) -> relax.Expr:
    _, window = _find_windows(op)
    power = op.attribute("p", 2)
    x = _raised(op, _magnitudes(op), power)
    mean = op.emit(_pool(_AVERAGE[len(window.given)], x, window, count_include_pad=True))
    count = relax.const(math.prod(window.kernel), str(x.ty.dtype))
    return cast(op, _root(op, op.emit(relax.op.multiply(mean, count)), power), op.dtype(0))


def _magnitudes(op: Operator) -> relax.Expr:
    """Absolute values; those of float16 in float32, as their powers soon go beyond its range."""
    wide = "float32" if op.dtype(0) == "float16" else op.dtype(0)
    return op.emit(relax.op.abs(cast(op, op.input(0), wide)))


def _global_lp_pool(op: Operator) -> relax.Expr:
    power, axes = op.attribute("p", 2), list(range(2, len(op.shape(0))))
    x = _raised(op, _magnitudes(op), power)
    return cast(op, _root(op, op.emit(relax.op.sum(x, axes, keepdims=True)), power), op.dtype(0))


def _max_unpool(op: Operator) -> relax.Expr:
    """Scattered over the shape that the pool's attributes give; output_shape then adds zeros at the ends.

    So ONNX's reference and its suite have it. An index out of range goes to a cell of its own, which is cut off.
    """
    batch, channels, *given = op.shape(0)
    kernel, rank = op.attribute("kernel_shape"), len(op.shape(0)) - 2
    strides, pads = op.attribute("strides") or (1,) * rank, op.attribute("pads") or (0,) * 2 * rank
    shape = [batch, channels]
    for axis in range(rank):
        shape.append((given[axis] - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[rank + axis])
    count, dtype = math.prod(shape), op.dtype(0)
    indices = op.emit(relax.op.reshape(op.input(1), (math.prod(op.shape(0)),)))
    last = relax.const(count, "int64")
    below = op.emit(relax.op.less(indices, relax.const(0, "int64")))
    indices = op.emit(relax.op.where(below, last, op.emit(relax.op.minimum(indices, last))))
    values = op.emit(relax.op.reshape(op.input(0), (math.prod(op.shape(0)),)))
    zeros = op.emit(relax.op.zeros((count + 1,), dtype))
    scattered = op.emit(relax.op.scatter_elements(zeros, indices, values, 0))
    made = op.emit(relax.op.reshape(op.emit(relax.op.strided_slice(scattered, [0], [0], [count])), shape))
    wanted = op.known(2, "its output_shape")
    if wanted is None or list(wanted) == shape:
        return made
    ends = [max(0, int(after) - before) for before, after in zip(shape, wanted, strict=True)]
    if any(ends):
        made = op.emit(relax.op.nn.pad(made, [width for end in ends for width in (0, end)]))
    axes = list(range(rank + 2))
    return relax.op.strided_slice(made, axes, [0] * len(axes), [int(extent) for extent in wanted])


CONVERTERS: dict[str, Converter] = {
    "AveragePool": _average_pool,
    "GlobalLpPool": _global_lp_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
}
