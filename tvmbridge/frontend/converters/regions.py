"""Operators that pool regions of images, given as boxes: how many elements they visit only the run decides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from tvmbridge.frontend.operator import Converter, Operator

_FAR = 2.0**24  # coordinates beyond this are as good as it
_MOST_SAMPLES = 1 << 14  # of a cell along an axis: a box that is larger than any image does not keep the run busy


def _whole(x: tirx.Expr, low: float, high: float) -> tirx.Expr:
    """x, which is whole, as an integer between the two; NaN is the lower."""
    return tirx.min(tirx.max(x, low), high).astype("int32")


def _pooled(
    inputs: list[te.Tensor], shape: tuple[int, ...], cell: Callable[[list[Any], list[tirx.Var], Any], None]
) -> te.Tensor:
    """A kernel that calls `cell` for every element of the result with the inputs, the element's place, the result."""

    def write(given: list[Any], made: Any) -> Any:
        with IRBuilder() as builder, ExitStack() as loops:
            first = loops.enter_context(script.parallel(0, shape[0]))
            rest = [loops.enter_context(script.serial(0, extent)) for extent in shape[1:]]
            cell(given, [first, *rest], made)
        return builder.get()

    dtype = inputs[0].dtype
    buffer = tirx.decl_buffer(shape, dtype, "pooled", layout=None)
    body = lambda given, made: write(list(given), made[0])  # noqa: E731
    return te.extern([shape], inputs, body, dtype=dtype, out_buffers=[buffer], name="regions")


@contextmanager
def _loops(*extents: tirx.Expr) -> Iterator[list[tirx.Var]]:
    with ExitStack() as stack:
        yield [stack.enter_context(script.serial(0, extent)) for extent in extents]


def _image(index: tirx.Expr, count: int) -> tirx.Expr:
    return tirx.min(tirx.max(index.astype("int64"), 0), count - 1)


@dataclasses.dataclass(frozen=True)
class _Align:
    """The attributes of RoiAlign. offset: what is taken off a coordinate. samples: of a cell along an axis, or 0."""

    cells: tuple[int, int]
    samples: int
    scale: float
    offset: float
    mode: str


def _aligned(x: te.Tensor, boxes: te.Tensor, images: te.Tensor, align: _Align) -> te.Tensor:
    """For each cell of each box the mean, or the largest part, of what its samples are interpolated from."""
    count, channels, *extents = (int(extent) for extent in x.shape)

    def cell(given: list[Any], at: list[tirx.Var], made: Any) -> None:
        pixels, corners, numbers = given
        box, channel, place = at[0], at[1], at[2:]
        image = _image(numbers[box], count)
        starts, steps, samples = [], [], []
        for axis in range(2):  # boxes are x, y, x, y
            start, end = (corners[box, 1 - axis + k] * align.scale - align.offset for k in (0, 2))
            size = end - start if align.offset else tirx.max(end - start, 1.0)
            step = size / float(align.cells[axis])
            adaptive = _whole(tirx.ceil(step), 0.0, float(_MOST_SAMPLES))
            samples.append(tirx.const(align.samples, "int32") if align.samples > 0 else adaptive)
            starts.append(start + place[axis].astype(x.dtype) * step)
            steps.append(step / samples[axis].astype(x.dtype))

        def sample(k: list[tirx.Var]) -> list[tirx.Expr]:
            """The four elements around it times their weights."""
            inside, low, high, weight = [], [], [], []
            for axis, extent in enumerate(extents):
                position = starts[axis] + (k[axis].astype(x.dtype) + 0.5) * steps[axis]
                inside += [tirx.Not(position < -1.0), tirx.Not(position > float(extent))]
                position = tirx.min(tirx.max(position, 0.0), extent - 1.0)
                low.append(_whole(tirx.floor(position), 0.0, extent - 1.0))
                high.append(tirx.min(low[axis] + 1, extent - 1))
                weight.append(position - low[axis].astype(x.dtype))
            parts = []
            for y, far_y in ((low[0], 1 - weight[0]), (high[0], weight[0])):
                for z, far_x in ((low[1], 1 - weight[1]), (high[1], weight[1])):
                    part = far_y * far_x * pixels[image, channel, y, z]
                    parts.append(tirx.if_then_else(tirx.all(*inside), part, tirx.const(0, x.dtype)))
            return parts

        target = tuple(at)
        start = tirx.const(0, x.dtype) if align.mode == "avg" else tirx.min_value(x.dtype)
        script.buffer_store(made, start, at)
        with _loops(*samples) as k:
            combine = (lambda a, b: a + b) if align.mode == "avg" else tirx.max
            script.buffer_store(made, functools.reduce(combine, sample(k), made[target]), at)
        total = samples[0] * samples[1]
        if align.mode == "avg":
            script.buffer_store(made, made[target] / tirx.max(total, 1).astype(x.dtype), at)
        else:
            script.buffer_store(made, tirx.Select(total > 0, made[target], tirx.const(0, x.dtype)), at)

    return _pooled([x, boxes, images], (int(boxes.shape[0]), channels, *align.cells), cell)


def _roi_align(op: Operator) -> relax.Expr:
    work = "float64" if op.dtype(0) == "float64" else "float32"
    half = op.version >= 16 and op.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    align = _Align(
        (op.attribute("output_height", 1), op.attribute("output_width", 1)),
        op.attribute("sampling_ratio", 0),
        op.attribute("spatial_scale", 1.0),
        0.5 if half else 0.0,
        op.attribute("mode", "avg"),
    )
    if align.mode not in ("avg", "max"):
        op.refuse(f"mode {align.mode}")
    x, boxes = (_cast(op, position, work) for position in range(2))
    y = op.compute(functools.partial(_aligned, align=align), x, boxes, op.input(2), name="roi_align")
    return y if work == op.dtype(0) else relax.op.astype(y, op.dtype(0))


def _cast(op: Operator, position: int, dtype: str) -> relax.Expr:
    x = op.input(position)
    return x if op.dtype(position) == dtype else op.emit(relax.op.astype(x, dtype))


def _rounded(x: tirx.Expr) -> tirx.Expr:
    """To the nearest whole number, halves away from zero."""
    return _whole(tirx.Select(x < 0.0, tirx.ceil(x - 0.5), tirx.floor(x + 0.5)), -_FAR, _FAR)


def _largest(x: te.Tensor, boxes: te.Tensor, cells: tuple[int, int], scale: float) -> te.Tensor:
    """The largest element of each cell of each box; 0 where the cell lies outside the image."""
    count, channels, *extents = (int(extent) for extent in x.shape)

    def cell(given: list[Any], at: list[tirx.Var], made: Any) -> None:
        pixels, corners = given
        box, channel, place = at[0], at[1], at[2:]
        image = _image(_rounded(corners[box, 0]), count)
        firsts, sizes = [], []
        for axis in range(2):  # boxes are image, x, y, x, y
            start, end = (_rounded(corners[box, 2 - axis + k] * scale) for k in (0, 2))
            step = tirx.max(end - start + 1, 1).astype(x.dtype) / float(cells[axis])
            k = place[axis].astype(x.dtype)
            edges = (tirx.floor(k * step), tirx.ceil((k + 1.0) * step))
            first, last = (tirx.min(tirx.max(_whole(edge, -_FAR, _FAR) + start, 0), extents[axis]) for edge in edges)
            firsts.append(first)
            sizes.append(tirx.max(last - first, 0))
        target = tuple(at)
        script.buffer_store(made, tirx.min_value(x.dtype), at)
        with _loops(*sizes) as k:
            element = pixels[image, channel, firsts[0] + k[0], firsts[1] + k[1]]
            script.buffer_store(made, tirx.max(made[target], element), at)
        script.buffer_store(made, tirx.Select(sizes[0] * sizes[1] > 0, made[target], tirx.const(0, x.dtype)), at)

    return _pooled([x, boxes], (int(boxes.shape[0]), channels, *cells), cell)


def _max_roi_pool(op: Operator) -> relax.Expr:
    work = "float64" if op.dtype(0) == "float64" else "float32"
    x, boxes = (_cast(op, position, work) for position in range(2))
    cells, scale = tuple(op.attribute("pooled_shape")), op.attribute("spatial_scale", 1.0)
    y = op.compute(functools.partial(_largest, cells=cells, scale=scale), x, boxes, name="max_roi_pool")
    return y if work == op.dtype(0) else relax.op.astype(y, op.dtype(0))


CONVERTERS: dict[str, Converter] = {
    "MaxRoiPool": _max_roi_pool,
    "RoiAlign": _roi_align,
}
