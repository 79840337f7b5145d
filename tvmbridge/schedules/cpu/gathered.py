"""Loads that lie in another order than a vector statement wants them: shuffled into scratch before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.differences import without_divided_differences
from tvmbridge.schedules.cpu.emit import number, scratch, store
from tvmbridge.schedules.cpu.offsets import at, linear, offset_of
from tvmbridge.schedules.cpu.pieces import Piece
from tvmbridge.schedules.cpu.shares import Places
from tvmbridge.schedules.cpu.shuffles import vector_store
from tvmbridge.schedules.cpu.stages import Axis, loads, substitute

# Statements, and the scratch that they fill.
Laid = tuple[list[tirx.Stmt], tvm.ir.Var]

MAX_STRIDE = 4  # of a strided load by shuffles: beyond it most of what is loaded is not used


def element(piece: Piece, places: Places) -> tirx.Stmt:
    """The statement for one element."""
    value = without_divided_differences(substitute(piece.value, places))
    return store(piece.buffer, at(piece.buffer, substitute(piece.offset, places)), value)


def widest(lanes: int, axis: Axis) -> int:
    """The lanes of a vector that the axis fills."""
    return min(lanes, 1 << (axis.extent.bit_length() - 1))


def blocks_of(axis: Axis, size: int) -> tuple[Axis, Callable[[tvm.ir.Expr], tvm.ir.Expr]]:
    """An axis of blocks, and where on the axis a block starts: the last one ends with the axis, over the one before."""
    blocks = Axis(tvm.ir.Var(f"{axis.var.name}_block", "int64"), -(-axis.extent // size))
    if axis.extent % size == 0:
        return blocks, lambda block: block * size
    return blocks, lambda block: tirx.min(block * size, number(axis.extent - size))


def steps_along(load: tvm.ir.TensorLoad, outer: Axis, inner: Axis) -> tuple[int, int]:
    """How far a load goes on with a step of either axis."""
    steps = linear(offset_of(load)).steps
    return steps.get(outer.var, 0), steps.get(inner.var, 0)


def is_guarded(piece: Piece) -> bool:
    """Whether a condition decides what is read at all: then nothing may be read ahead of it."""
    found: list[tvm.ir.Call] = []
    tvm_ffi.structural_walk(piece.value, (tvm.ir.Call, lambda call: found.append(call)))
    return any(getattr(call.op, "name", "").endswith("if_then_else") for call in found)


def can_shuffle(load: tvm.ir.TensorLoad, axes: list[Axis]) -> bool:
    """Whether the offset is linear in the axes. A vector of booleans is not what memory holds of them."""
    rest = [var for other in linear(offset_of(load)).others for var in tirx.analysis.undefined_vars(other)]
    return str(load.source.dtype) != "bool" and not any(axis.var in rest for axis in axes)


def laid_out(vectors: list[tvm.ir.Expr], dtype: str, lanes: int) -> Laid:
    """Scratch that holds the vectors one after another; its constant places make registers of it."""
    buffer, allocation = scratch([len(vectors) * lanes], dtype, "laid")
    stores = [vector_store(buffer, i * lanes, vector, lanes) for i, vector in enumerate(vectors)]
    return [allocation, *stores], buffer


def with_laid_out(
    piece: Piece, lay: Callable[[tvm.ir.TensorLoad], Laid | None]
) -> tuple[list[tirx.Stmt], tvm.ir.Var, Piece]:
    """What `lay` lays out of the loads, done first; the variable for the place in it; the piece that reads it there."""
    slot = tvm.ir.Var("slot", "int64")
    prepared: list[tirx.Stmt] = []
    done: list[tuple[tvm.ir.TensorLoad, tvm.ir.TensorLoad]] = []
    for load in [] if is_guarded(piece) else loads(piece.value):
        if any(tvm_ffi.structural_equal(load, known) for known, _ in done):
            continue
        laid = lay(load)
        if laid is not None:
            prepared += laid[0]
            done.append((load, tirx.BufferLoad(laid[1], [slot])))

    def replace(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        return next((new for old, new in done if tvm_ffi.structural_equal(load, old)), load)

    value = tvm_ffi.structural_map(piece.value, (tvm.ir.TensorLoad, replace)) if done else piece.value
    return prepared, slot, dataclasses.replace(piece, value=value)
