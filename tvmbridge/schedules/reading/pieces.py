"""An element-wise stage read as pieces: boxes of its output in which no condition is open and offsets are linear.

The output is taken as one flat index. Every division and remainder of it that occurs (reshapes, transposes, tiles,
broadcasts) cuts it into digits, the axes of the piece, of which the offsets of most reads are linear sums; conditions
and clips on an axis (concat, pad) cut the box in two. What is then contiguous in all reads and the write is one axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import Values, number, substitute
from tvmbridge.schedules.loops.indices import Box, analyzer, at, coordinates, linear, offset, whole
from tvmbridge.schedules.loops.stages import Axis, Stage, stores_at_its_axes
from tvmbridge.schedules.reading.conditions import boundary, simplified

# A stage that falls into more is left with conditions in its loops: code grows with every piece.
_MAX_PIECES = 64


@dataclasses.dataclass(frozen=True)
class Piece:
    """`buffer[offset] = value` for every point of the axes, outermost first, none of extent 1.

    Offsets, the loads' too, count elements from the start of the buffer: see `at`.
    """

    axes: tuple[Axis, ...]
    buffer: tvm.ir.Var
    offset: tvm.ir.Expr
    value: tvm.ir.Expr


def can_be_pieces(stage: Stage) -> bool:
    """Whether the stage stores every element of its buffer once, in order, without a reduction."""
    extents = [axis.extent for axis in stage.spatial]
    shape = [int(axis) for axis in stage.buffer.shape if isinstance(axis, tirx.IntImm)]
    if stage.reduction or len(shape) != len(stage.buffer.shape) or math.prod(shape) != math.prod(extents):
        return False
    return stores_at_its_axes(stage) or (not shape and math.prod(extents) == 1)


def read_pieces(stage: Stage, most: int = _MAX_PIECES) -> tuple[Piece, ...]:
    """The pieces of a stage that `can_be_pieces`, cut until there are `most`; none where it has no element."""
    if stage.size == 0:
        return ()
    flat = tvm.ir.Var("flat", "int64")
    value = _with_flat_offsets(substitute(stage.value, coordinates(flat, stage.spatial)))
    value = simplified(value, [(Axis(flat, stage.size), 0, stage.size)])
    digits = _digits(value, flat, stage.size)
    place = number(0)
    for axis in digits:
        place = place * axis.extent + axis.var
    box = whole(digits)
    value = simplified(substitute(value, {flat: place}), box)
    found: list[Piece] = []
    boxes = [(box, value)]
    while boxes:
        box, value = boxes.pop()
        cut = boundary(value, box) if len(boxes) + len(found) + 1 < most else None
        if cut is None:
            found.append(_piece(stage.buffer, place, value, box))
            continue
        cut_axis, position = cut
        axis, first, end = box[cut_axis]
        for part in ((axis, position, end), (axis, first, position)):  # a stack: the last is the next
            smaller = [*box[:cut_axis], part, *box[cut_axis + 1 :]]
            boxes.append((smaller, simplified(value, smaller)))
    return tuple(found)


def moved(piece: Piece, buffers: Mapping[tvm.ir.Var, tvm.ir.Var]) -> Piece:
    """The piece with flat buffers in place of others."""

    def load_moved(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        return tirx.BufferLoad(buffers[load.source], [offset(load)]) if load.source in buffers else load

    value = tvm_ffi.structural_map(piece.value, (tvm.ir.TensorLoad, load_moved)) if buffers else piece.value
    return dataclasses.replace(piece, buffer=buffers.get(piece.buffer, piece.buffer), value=value)


def _with_flat_offsets(value: tvm.ir.Expr) -> tvm.ir.Expr:
    def flat(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        return tirx.BufferLoad(load.source, at(load.source, offset(load)))

    return tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, flat))


def _digits(value: tvm.ir.Expr, flat: tvm.ir.Var, size: int) -> list[Axis]:
    """The axes that the divisions in the value cut the flat index into, outermost first."""
    cuts = {size}

    def note(node: tirx.FloorDiv | tirx.FloorMod) -> None:
        if isinstance(node.b, tirx.IntImm):
            sum_ = linear(node.a)
            scaled = [(step, var) for var, step in sum_.steps.items()] + [_factor(other) for other in sum_.others]
            for scale, term in scaled:
                unit = _unit(term, flat)
                if unit is not None and int(node.b) % scale == 0:
                    cuts.add(unit * int(node.b) // abs(scale))

    tvm_ffi.structural_walk(value, ((tirx.FloorDiv, tirx.FloorMod), note))
    axes: list[Axis] = []
    below = 1
    for cut in sorted(cuts - {0, 1}):
        if size % cut == 0 and cut % below == 0:
            axes.append(Axis(tvm.ir.Var(f"d{len(axes)}", "int64"), cut // below))
            below = cut
    return axes[::-1]


def _factor(expr: tvm.ir.Expr) -> tuple[int, tvm.ir.Expr]:
    factor = 1
    while isinstance(expr, tirx.Mul) and isinstance(expr.b, tirx.IntImm) and int(expr.b):
        factor *= int(expr.b)
        expr = expr.a
    return factor, expr


def _unit(expr: tvm.ir.Expr, flat: tvm.ir.Var) -> int | None:
    """How far the flat index goes on for `flat`, `flat % a`, `flat // b` or `flat % a // b` to grow by one."""
    unit = 1
    if isinstance(expr, tirx.FloorDiv) and isinstance(expr.b, tirx.IntImm):
        unit, expr = int(expr.b), expr.a
    if isinstance(expr, tirx.FloorMod):
        expr = expr.a
    if isinstance(expr, tirx.FloorDiv) and isinstance(expr.b, tirx.IntImm):
        unit, expr = int(expr.b) * unit, expr.a
    return unit if isinstance(expr, tvm.ir.Var) and expr.same_as(flat) else None


def _piece(buffer: tvm.ir.Var, place: tvm.ir.Expr, value: tvm.ir.Expr, box: Box) -> Piece:
    """The box with its axes from 0, those of extent 1 gone and those that are contiguous in everything merged."""
    axes = [Axis(tvm.ir.Var(axis.var.name, "int64"), end - first) for axis, first, end in box]
    moved = {
        old.var: new.var + first if new.extent > 1 else number(first)
        for (old, first, _), new in zip(box, axes, strict=True)
    }
    axes = [axis for axis in axes if axis.extent > 1]
    simplify = analyzer(whole(axes)).simplify
    place = simplify(substitute(place, moved))
    value = simplified(substitute(value, moved), whole(axes))
    steps, free = accesses(value)
    steps.append(linear(place).steps)
    merged: list[Axis] = []
    joined: Values = {}
    for axis in axes:
        last = merged[-1] if merged else None
        if (
            last is not None
            and not any(var.same_as(last.var) or var.same_as(axis.var) for var in free)
            and all(step.get(last.var, 0) == step.get(axis.var, 0) * axis.extent for step in steps)
        ):
            # Every use of the pair is a multiple of (last * extent + axis): the inner one can stand for it.
            joined[last.var] = number(0)
            merged[-1] = Axis(axis.var, last.extent * axis.extent)
        else:
            merged.append(axis)
    value = simplified(substitute(value, joined), whole(merged))
    return Piece(tuple(merged), buffer, simplify(substitute(place, joined)), value)


def accesses(value: tvm.ir.Expr) -> tuple[list[Mapping[tvm.ir.Var, int]], list[tvm.ir.Var]]:
    """The steps of every load's offset, and the variables that the value uses in any other way."""
    steps: list[Mapping[tvm.ir.Var, int]] = []

    def without_steps(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        sum_ = linear(offset(load))
        steps.append(sum_.steps)
        rest = number(0)
        for other in sum_.others:
            rest = rest + other
        return tirx.BufferLoad(load.source, at(load.source, rest))

    rest = tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, without_steps))
    return steps, [var for var in tirx.analysis.undefined_vars(rest) if str(var.ty.dtype).startswith("int")]
