"""Operators that shift elements along axes: pads, crops, reversed and updated sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from tvmbridge.frontend.operator import Converter, Operator, numpy_type

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _inside(x: te.Tensor, value: te.Tensor, before: Sequence[int], shape: Sequence[int]) -> te.Tensor:
    """x, with so many elements of `value` before it along each axis that it fills the shape."""

    def element(*at: tirx.Var) -> tirx.Expr:
        places = [k - first for k, first in zip(at, before, strict=True)]
        within = [tirx.all(k >= 0, k < extent) for k, extent in zip(places, x.shape, strict=True)]
        return tirx.if_then_else(tirx.all(*within), x(*places), value())

    return te.compute(tuple(shape), element, name="pad")


def _cropped(op: Operator, x: relax.Expr, shape: Sequence[int], width: np.ndarray) -> tuple[relax.Expr, list[int]]:
    """What negative pads leave of the tensor, and its shape."""
    firsts, lasts = np.maximum(-width, 0).T.tolist()
    ends = [max(extent - last, first) for extent, last, first in zip(shape, lasts, firsts, strict=True)]
    left = [end - first for first, end in zip(firsts, ends, strict=True)]
    if left == list(shape) or 0 in left:
        return x, left
    axes = [axis for axis, extent in enumerate(shape) if left[axis] != extent]
    cut = relax.op.strided_slice(x, axes, [firsts[axis] for axis in axes], [ends[axis] for axis in axes])
    return op.emit(cut), left


def _padded(op: Operator, width: np.ndarray, mode: str, value: np.ndarray | None) -> relax.Expr:
    """The first operand with so many elements more, or less, at both ends of each axis; value None: operand 2."""
    dtype = op.dtype(0)
    x, shape = _cropped(op, op.input(0), op.shape(0), width)
    width = np.maximum(width, 0)
    made = (np.array(shape) + width.sum(axis=1)).tolist()
    if not width.any() and 0 not in shape:
        return x
    if mode == "constant":
        plain = dtype != "bool" and value is not None and (not dtype.endswith("int64") or abs(value.item()) < 2**53)
        if plain and value is not None and 0 not in shape:  # Relax's operator holds the value as a float
            return relax.op.nn.pad(x, width.ravel().tolist(), "constant", value.item())
        filler = op.input(2) if value is None else op.const(value)
        filler = op.emit(relax.op.reshape(filler, ()))
        if 0 in shape:
            return relax.op.broadcast_to(filler, made)
        return op.compute(_inside, x, filler, width[:, 0].tolist(), made, name="pad")
    if 0 in shape:
        op.refuse(f"mode {mode} where nothing is left to repeat")
    if mode in _PAD_MODES and (mode == "edge" or (width.max(axis=1) < np.array(shape)).all()):
        return relax.op.nn.pad(x, width.ravel().tolist(), _PAD_MODES[mode], 0)
    for axis, (before, after) in enumerate(width.tolist()):
        if before or after:
            places = np.pad(np.arange(shape[axis]), (before, after), mode)  # type: ignore[call-overload]
            x = op.emit(relax.op.take(x, relax.const(places, "int64"), axis, mode="fast"))
    return x


def _pad(op: Operator) -> relax.Expr:
    rank = len(op.shape(0))
    pads = op.known(1, "its pads") if op.has(1) else np.asarray(op.attribute("pads", op.attribute("paddings")))
    axes = op.known(3, "its axes") if op.has(3) else np.arange(rank)
    mode = op.attribute("mode", "constant")
    if pads is None or axes is None or mode not in (*_PAD_MODES, "wrap"):
        op.refuse(f"mode {mode}, or no pads")
    width = np.zeros((rank, 2), np.int64)
    width[axes % rank] = pads.reshape(2, -1).T
    value = op.constant(2) if op.has(2) else np.asarray(op.attribute("value", 0)).astype(numpy_type(op.type()))
    return _padded(op, width, mode, value)


def _center_crop_pad(op: Operator) -> relax.Expr:
    """What is odd is cut off, and added, at the end."""
    wanted, shape = op.known(1, "its shape"), op.shape(0)
    if wanted is None:
        op.refuse("it has no shape")
    width = np.zeros((len(shape), 2), np.int64)
    for axis, extent in zip(op.attribute("axes", range(len(shape))), wanted.tolist(), strict=True):
        more = abs(extent - shape[axis])
        width[axis] = np.sign(extent - shape[axis]) * np.array([more // 2, more - more // 2])
    return _padded(op, width, "constant", np.zeros((), numpy_type(op.type())))


def _reversed(x: te.Tensor, lengths: te.Tensor, batch: int, time: int) -> te.Tensor:
    """The first elements along `time` in reverse order, as many as the length of their sequence says."""
    extent = x.shape[time]

    def element(*at: tirx.Var) -> tirx.Expr:
        length = tirx.min(tirx.max(lengths[at[batch]].astype("int64"), 0), extent.astype("int64"))
        k = at[time].astype("int64")
        source = tirx.Select(k < length, length - 1 - k, k)
        return x(*(source if axis == time else place for axis, place in enumerate(at)))

    return te.compute(x.shape, element, name="reverse_sequence")


def _reverse_sequence(op: Operator) -> relax.Expr:
    batch, time = op.attribute("batch_axis", 1), op.attribute("time_axis", 0)
    return op.compute(_reversed, op.input(0), op.input(1), batch, time, name="reverse_sequence")


def _updated(cache: te.Tensor, update: te.Tensor, starts: te.Tensor | None, axis: int, circular: bool) -> te.Tensor:
    """The cache with the update written from the start of each sample on."""
    extent, count = (int(tensor.shape[axis]) for tensor in (cache, update))

    def element(*at: tirx.Var) -> tirx.Expr:
        place = at[axis].astype("int64")
        if starts is not None:
            place = place - starts[at[0]].astype("int64")
        if circular:
            place = tirx.floormod(place, tirx.const(extent, "int64"))
        new = update(*(place if k == axis else index for k, index in enumerate(at)))
        return tirx.if_then_else(tirx.all(place >= 0, place < count), new, cache(*at))

    return te.compute(cache.shape, element, name="tensor_scatter")


def _tensor_scatter(op: Operator) -> relax.Expr:
    axis, circular = op.attribute("axis", -2) % len(op.shape(0)), op.attribute("mode", "linear") == "circular"
    if 0 in op.shape(1):
        return op.input(0)
    starts = op.input(2) if op.has(2) else None
    return op.compute(_updated, op.input(0), op.input(1), starts, axis, circular, name="tensor_scatter")


CONVERTERS: dict[str, Converter] = {
    "CenterCropPad": _center_crop_pad,
    "Pad": _pad,
    "ReverseSequence": _reverse_sequence,
    "TensorScatter": _tensor_scatter,
}
