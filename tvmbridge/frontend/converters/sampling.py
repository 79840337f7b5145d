"""Operators that sample images between their elements, and the grids that say where; columns put back to images."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from tvm import relax, te, tirx

from tvmbridge.frontend.operator import Converter, Operator

_FAR = 2.0**24  # where float32 tells no two elements apart: coordinates beyond are as good as this one
_MODES = {"bilinear": "linear", "bicubic": "cubic"}
_A = -0.75  # of the cubic weights, in every version of the operator


def _limited(x: tirx.Expr) -> tirx.Expr:
    """A coordinate that converts to an integer, whatever it was: NaN is as far to the left as can be."""
    return tirx.min(tirx.max(x, -_FAR), _FAR)


def _reflected(x: tirx.Expr, low: float, high: float) -> tirx.Expr:
    """x, mirrored at both ends until it is between them."""
    span = high - low
    if span <= 0:
        return x * 0 + low
    beyond = tirx.Select(x < low, low - x, x - high)
    turns = tirx.floor(beyond / span)
    rest = beyond - turns * span
    odd = turns - 2 * tirx.floor(turns / 2) > 0.5
    below = tirx.Select(odd, high - rest, low + rest)
    above = tirx.Select(odd, low + rest, high - rest)
    return tirx.Select(x < low, below, tirx.Select(x > high, above, x))


def _where(conditions: list[tirx.Expr], element: tirx.Expr) -> tirx.Expr:
    """An element whose index is in range, or 0: a Select would read it anyway, and TVM no longer clip its index."""
    return tirx.if_then_else(tirx.all(*conditions), element, tirx.const(0, element.ty))


def _ends(extent: int, corners: bool) -> tuple[float, float]:
    return (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)


def _places(grid: te.Tensor, extents: list[int], mode: str, padding: str, corners: bool) -> te.Tensor:
    """Where on the image each sample lies: coordinates in elements, in the order of the image's axes."""

    def place(*at: tirx.Var) -> tirx.Expr:
        coordinates = [_place(grid(*at[:-1], len(extents) - 1 - axis), axis) for axis in range(len(extents))]
        chosen = coordinates[-1]
        for axis in reversed(range(len(extents) - 1)):
            chosen = tirx.Select(at[-1] == axis, coordinates[axis], chosen)
        return chosen

    def _place(normal: tirx.Expr, axis: int) -> tirx.Expr:
        extent = extents[axis]
        x = (normal + 1) / 2 * (extent - 1) if corners else ((normal + 1) * extent - 1) / 2
        x = _limited(x)
        if mode == "nearest":
            x = tirx.nearbyint(x)
        low, high = _ends(extent, corners)
        if padding == "border":
            return tirx.Select(tirx.any(x < low, x > high), tirx.min(tirx.max(x, 0.0), extent - 1.0), x)
        return _reflected(x, low, high) if padding == "reflection" else x

    return te.compute(grid.shape, place, name="places")


def _weight(distance: tirx.Expr, mode: str) -> tirx.Expr:
    """Of an element so far away from the sample."""
    t = tirx.abs(distance)
    if mode == "linear":
        return tirx.max(1 - t, 0.0)
    near = ((_A + 2) * t - (_A + 3)) * t * t + 1
    return tirx.Select(t <= 1, near, ((_A * t - 5 * _A) * t + 8 * _A) * t - 4 * _A)


def _sampled(x: te.Tensor, places: te.Tensor, mode: str, padding: str, corners: bool, dtype: str) -> te.Tensor:
    """The weighted sum of the elements around each sample; what lies outside is zero, or another element."""
    extents = [int(extent) for extent in x.shape[2:]]
    taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode]
    around = [te.reduce_axis((0, taps), f"k{axis}") for axis in range(len(extents))] if taps > 1 else []

    def element(*at: tirx.Var) -> tirx.Expr:
        indices, within, weight = [], [], tirx.const(1, dtype)
        for axis, extent in enumerate(extents):
            place = places(at[0], *at[2:], axis)
            index = tirx.floor(place).astype("int32")
            if taps > 1:
                index = index + around[axis] - (taps // 2 - 1)
                weight = weight * _weight(place - index.astype(places.dtype), mode).astype(dtype)
            if padding == "zeros":
                within += [index >= 0, index < extent]
            elif padding == "reflection":
                index = _reflected(index.astype("float32"), *_ends(extent, corners)).astype("int32")
            indices.append(tirx.min(tirx.max(index, 0), extent - 1))
        found = x(at[0], at[1], *indices).astype(dtype)
        found = _where(within, found) if within else found
        return te.sum(found * weight, axis=around) if taps > 1 else found

    return te.compute((*x.shape[:2], *places.shape[1:-1]), element, name="grid_sample")


def _grid_sample(op: Operator) -> relax.Expr:
    mode = _MODES.get(op.attribute("mode", "linear"), op.attribute("mode", "linear"))
    padding, corners = op.attribute("padding_mode", "zeros"), bool(op.attribute("align_corners", 0))
    dtype = op.dtype(0)
    if mode != "nearest" and not dtype.startswith("float"):
        op.refuse(f"elements of type {dtype}, other than of the nearest")
    work = "float32" if dtype == "float16" else dtype
    grid = op.input(1)
    if op.dtype(1) == "float16":
        grid = op.emit(relax.op.astype(grid, "float32"))
    extents = list(op.shape(0)[2:])
    places = op.compute(_places, grid, extents, mode, padding, corners, name="grid_places")
    y = op.compute(_sampled, op.input(0), places, mode, padding, corners, work, name="grid_sample")
    return y if work == dtype else relax.op.astype(y, dtype)


def _affine(theta: te.Tensor, axes: list[te.Tensor]) -> te.Tensor:
    """Each row of theta times (…, y, x, 1), for every point of the image."""
    rank = len(axes)

    def element(*at: tirx.Var) -> tirx.Expr:
        terms = [theta(at[0], at[-1], rank - 1 - axis) * axes[axis](at[1 + axis]) for axis in range(rank)]
        return functools.reduce(lambda left, right: left + right, reversed(terms)) + theta(at[0], at[-1], rank)

    return te.compute((theta.shape[0], *(axis.shape[0] for axis in axes), rank), element, name="affine_grid")


def _affine_grid(op: Operator) -> relax.Expr:
    size = op.known(1, "its size")
    if size is None:
        op.refuse("it has no size")
    dtype, axes = op.dtype(0), []
    work = "float32" if dtype == "float16" else dtype
    for extent in size[2:].tolist():
        if op.attribute("align_corners", 0):
            points = np.linspace(-1, 1, extent) if extent > 1 else np.ones(1)  # of one point, as ONNX Runtime has it
        else:
            points = (2 * np.arange(extent) + 1) / extent - 1
        axes.append(relax.const(points.astype(work), work))
    theta = op.input(0) if work == dtype else op.emit(relax.op.astype(op.input(0), work))
    grid = op.compute(_affine, theta, axes, name="affine_grid")
    return grid if work == dtype else relax.op.astype(grid, dtype)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How columns were taken from an image: its shape, theirs, and how many of them there are along each axis."""

    image: list[int]
    block: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    @property
    def counts(self) -> list[int]:
        axes = range(len(self.image))
        room = [self.image[k] + self.pads[k] + self.pads[k + len(axes)] for k in axes]
        return [(room[k] - self.dilations[k] * (self.block[k] - 1) - 1) // self.strides[k] + 1 for k in axes]


def _summed(x: te.Tensor, blocks: _Blocks) -> te.Tensor:
    """Each element of the image: the sum of the columns' elements that were taken from it."""
    counts = blocks.counts
    offsets = [te.reduce_axis((0, extent), f"k{axis}") for axis, extent in enumerate(blocks.block)]

    def element(sample: tirx.Var, channel: tirx.Var, *at: tirx.Var) -> tirx.Expr:
        row, column, within = channel, tirx.const(0, "int64"), []
        for axis, offset in enumerate(offsets):
            stride = blocks.strides[axis]
            place = at[axis].astype("int64") + blocks.pads[axis] - offset.astype("int64") * blocks.dilations[axis]
            step = tirx.floordiv(place, tirx.const(stride, "int64"))
            within += [place - step * stride == 0, step >= 0, step < counts[axis]]
            row, column = row * blocks.block[axis] + offset, column * counts[axis] + step
        return te.sum(_where(within, x(sample, row, column)), axis=offsets)

    channels = int(x.shape[1]) // math.prod(blocks.block)
    return te.compute((x.shape[0], channels, *blocks.image), element, name="col2im")


def _col2im(op: Operator) -> relax.Expr:
    image, block = op.known(1, "its image's shape"), op.known(2, "its block's shape")
    if image is None or block is None or op.dtype(0) == "bool":
        op.refuse("elements that have no sum, or no shape")
    ones = [1] * image.size
    strides, dilations = (list(op.attribute(name, ones)) for name in ("strides", "dilations"))
    blocks = _Blocks(
        image.tolist(), block.tolist(), strides, dilations, list(op.attribute("pads", [0, 0] * image.size))
    )
    if math.prod(blocks.counts) != op.shape(0)[2]:
        op.refuse(f"it has {op.shape(0)[2]} columns, and the image has place for {math.prod(blocks.counts)}")
    return op.compute(functools.partial(_summed, blocks=blocks), op.input(0), name="col2im")


CONVERTERS: dict[str, Converter] = {
    "AffineGrid": _affine_grid,
    "Col2Im": _col2im,
    "GridSample": _grid_sample,
}
