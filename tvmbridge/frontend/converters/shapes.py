"""Operators that rearrange whole tensors: other shapes, orders of axes, parts, repeats and joins."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator


def _parameter(op: Operator, position: int, what: str, attribute: str) -> np.ndarray | None:
    """A parameter that old op-sets have as an attribute and new ones as an input; None where it is absent."""
    if op.has(position):
        return op.known(position, what)
    given = op.attribute(attribute)
    return None if given is None else np.asarray(given)


def _reshape(op: Operator) -> relax.Expr:
    _parameter(op, 1, "its shape", "shape")
    return relax.op.reshape(op.input(0), op.result_shape())


def _flatten(op: Operator) -> relax.Expr:
    return relax.op.reshape(op.input(0), op.result_shape())


def _squeeze(op: Operator) -> relax.Expr:
    axes = _parameter(op, 1, "its axes", "axes")
    if axes is not None and not axes.size:
        return op.input(0)
    return relax.op.squeeze(op.input(0), None if axes is None else axes.ravel().tolist())


def _unsqueeze(op: Operator) -> relax.Expr:
    axes = _parameter(op, 1, "its axes", "axes")
    if axes is None:
        op.refuse("it has no axes")
    x, rank = op.input(0), len(op.shape(0)) + axes.size
    for axis in sorted(int(axis) % rank for axis in axes.ravel()):
        x = op.emit(relax.op.expand_dims(x, axis))
    return x


def _transpose(op: Operator) -> relax.Expr:
    order = op.attribute("perm")
    if not op.shape(0):
        return op.input(0)
    return relax.op.permute_dims(op.input(0), None if order is None else list(order))


def _concat(op: Operator) -> relax.Expr:
    axis = op.attribute("axis", 1)
    parts = [op.input(k) for k in range(len(op.operands)) if op.shape(k)[axis]]
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis)


def _split(op: Operator) -> list[relax.Expr]:
    _parameter(op, 1, "its parts", "split")
    axis, count = op.attribute("axis", 0), len(op.results)
    sizes = [op.result_shape(k)[axis] for k in range(count)]
    if count == 1:
        return [op.input(0)]
    if 0 not in sizes:
        parts = op.emit(relax.op.split(op.input(0), np.cumsum(sizes[:-1]).tolist(), axis))
        return [op.emit(relax.TupleGetItem(parts, k)) for k in range(count)]
    ends = np.cumsum(sizes).tolist()
    return [
        op.emit(relax.op.strided_slice(op.input(0), [axis], [end - size], [end]))
        if size
        else op.const(np.empty(op.result_shape(k)))
        for k, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _slice(op: Operator) -> relax.Expr:
    """Starts and ends are clamped here, as Python's slices are."""
    starts, ends = _parameter(op, 1, "its starts", "starts"), _parameter(op, 2, "its ends", "ends")
    if starts is None or ends is None:
        op.refuse("it has no starts or no ends")
    axes, steps = _parameter(op, 3, "its axes", "axes"), _parameter(op, 4, "its steps", "steps")
    shape = op.shape(0)
    cuts: dict[int, tuple[int, int, int]] = {}
    for k, (start, end) in enumerate(zip(starts.ravel(), ends.ravel(), strict=True)):
        axis = k if axes is None else int(axes[k]) % len(shape)
        step = 1 if steps is None else int(steps[k])
        if step == 0:
            op.refuse("a step of 0")
        extent = shape[axis]
        start, stop, step = slice(int(start), int(end), step).indices(extent)
        if (start, stop, step) != (0, extent, 1):
            cuts[axis] = (start, stop if stop >= 0 else -extent - 1, step)
    if not cuts:
        return op.input(0)
    firsts, stops, strides = zip(*cuts.values(), strict=True)
    return relax.op.strided_slice(op.input(0), list(cuts), list(firsts), list(stops), list(strides))


def _expand(op: Operator) -> relax.Expr:
    """Of two extents the result has the larger: ONNX broadcasts the operand to the shape and the shape to it."""
    op.known(1, "its shape")
    return op.input(0) if op.result_shape() == op.shape(0) else relax.op.broadcast_to(op.input(0), op.result_shape())


def _tile(op: Operator) -> relax.Expr:
    repeats = op.known(1, "its repeats")
    if repeats is None:
        op.refuse("it has no repeats")
    if op.version < 6:  # how often, and along which axis, are inputs of their own
        axis = op.known(2, "its axis")
        full = np.ones(len(op.shape(0)), np.int64)
        full[0 if axis is None else int(axis.item())] = int(repeats.item())
        repeats = full
    return op.input(0) if (repeats == 1).all() else relax.op.tile(op.input(0), repeats.tolist())


def _depth_to_space(op: Operator) -> relax.Expr:
    batch, channels, height, width = op.shape(0)
    block = op.attribute("blocksize")
    depth = channels // block**2
    if op.attribute("mode", "DCR") == "CRD":
        shape, order = (batch, depth, block, block, height, width), [0, 1, 4, 2, 5, 3]
    else:
        shape, order = (batch, block, block, depth, height, width), [0, 3, 4, 1, 5, 2]
    x = op.emit(relax.op.permute_dims(op.emit(relax.op.reshape(op.input(0), shape)), order))
    return relax.op.reshape(x, (batch, depth, height * block, width * block))


def _space_to_depth(op: Operator) -> relax.Expr:
    batch, channels, height, width = op.shape(0)
    block = op.attribute("blocksize")
    rows, columns = height // block, width // block
    order = [0, 1, 3, 5, 2, 4] if op.attribute("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    x = op.emit(relax.op.reshape(op.input(0), (batch, channels, rows, block, columns, block)))
    return relax.op.reshape(op.emit(relax.op.permute_dims(x, order)), (batch, channels * block**2, rows, columns))


CONVERTERS: dict[str, Converter] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
