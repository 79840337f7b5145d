"""Loads that lie in another order than a vector statement wants them: shuffled into scratch before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.map.shuffles import vector_store
from tvmbridge.schedules.loops.differences import without_divided_differences
from tvmbridge.schedules.loops.emit import scratch, store
from tvmbridge.schedules.loops.expressions import Values, chooses, loads, substitute, variables
from tvmbridge.schedules.loops.indices import at, linear, offset
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import Blocks
from tvmbridge.schedules.reading.pieces import Piece

# Statements, and the scratch that they fill.
Laid = tuple[list[tirx.Stmt], tvm.ir.Var]

MAX_STRIDE = 4  # of a strided load by shuffles: beyond it most of what is loaded is not used


def element(piece: Piece, places: Values) -> tirx.Stmt:
    """The statement for one element."""
    value = without_divided_differences(substitute(piece.value, places))
    return store(piece.buffer, at(piece.buffer, substitute(piece.offset, places)), value)


def blocks_of(axis: Axis, size: int) -> tuple[Axis, Callable[[tvm.ir.Expr], tvm.ir.Expr]]:
    """The axis of an axis's blocks, and where on the axis each of them starts."""
    blocks = Blocks(axis.extent, size)
    return Axis(tvm.ir.Var(f"{axis.var.name}_block", "int64"), blocks.count), blocks.start


def steps_along(load: tvm.ir.TensorLoad, outer: Axis, inner: Axis) -> tuple[int, int]:
    """How far a load goes on with a step of either axis."""
    steps = linear(offset(load)).steps
    return steps.get(outer.var, 0), steps.get(inner.var, 0)


def can_shuffle(load: tvm.ir.TensorLoad, axes: list[Axis]) -> bool:
    """Whether the offset is linear in the axes. A vector of booleans is not what memory holds of them."""
    rest = [var for other in linear(offset(load)).others for var in variables(other)]
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
    for load in [] if chooses(piece.value) else loads(piece.value):  # nothing is read ahead of its condition
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
