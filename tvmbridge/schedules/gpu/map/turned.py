"""Writes a piece that reads along one axis and writes along another: square tiles, turned in shared memory.

A warp reads and writes whole rows of a tile. A row in shared memory has a word more than the tile, so that the threads
of a warp, a row apart each, reach as many banks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.gpu.launch import WARP, all_of, guarded, launch, shared
from tvmbridge.schedules.loops.emit import sequence, store, unrolled
from tvmbridge.schedules.loops.expressions import Values, chooses, loads, number, substitute
from tvmbridge.schedules.loops.indices import at, coordinates, linear, offset
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.reading.pieces import Piece

_SIDE = WARP  # of a tile
_LEAST = 16  # steps of either axis from which a tile is worth its barrier
_NEAR = 8  # elements between neighbours up to which the cache serves a warp that reads across
_MOST_TILES = 4  # inputs that are turned


@dataclasses.dataclass(frozen=True)
class Turned:
    """across: the axis along which the loads are contiguous, which the output is not."""

    across: Axis
    loads: tuple[tvm.ir.TensorLoad, ...]


def turned_of(piece: Piece) -> Turned | None:
    """What of the piece is worth turning; None: nothing."""
    if len(piece.axes) < 2 or chooses(piece.value) or linear(piece.offset).others:
        return None
    *outer, inner = piece.axes
    if inner.extent < _LEAST:
        return None
    for axis in reversed(outer):
        found: list[tvm.ir.TensorLoad] = []
        for load in loads(piece.value):
            sum_ = linear(offset(load))
            reads_along = sum_.steps.get(axis.var, 0) == 1 and abs(sum_.steps.get(inner.var, 0)) > _NEAR
            new = not any(tvm_ffi.structural_equal(load, other) for other in found)
            if axis.extent >= _LEAST and reads_along and not sum_.others and new:
                found.append(load)
        if 0 < len(found) <= _MOST_TILES:
            return Turned(axis, tuple(found))
    return None


def write_turned(piece: Piece, turned: Turned, threads: int) -> tirx.Stmt:
    """A block for each tile; a warp for each of its rows, or for some of them."""
    inner, across = piece.axes[-1], turned.across
    others = [axis for axis in piece.axes if axis is not inner and axis is not across]
    inner_tiles, across_tiles = (Axis(tvm.ir.Var("tile", "int64"), -(-a.extent // _SIDE)) for a in (inner, across))
    grid = [*others, across_tiles, inner_tiles]
    warps = threads // WARP
    buffers = [shared(_SIDE * (_SIDE + 1), str(load.source.dtype), "tile") for load in turned.loads]

    def within(axis: Axis, place: tvm.ir.Expr) -> tvm.ir.Expr | None:
        return place < number(axis.extent) if axis.extent % _SIDE else None

    def body(block: tvm.ir.Var, thread: tvm.ir.Var) -> tirx.Stmt:
        places = coordinates(block, grid)
        first = {inner.var: places[inner_tiles.var] * _SIDE, across.var: places[across_tiles.var] * _SIDE}
        column, warp = tirx.floormod(thread, number(WARP)), tirx.floordiv(thread, number(WARP))

        def rows(along: Axis, beside: Axis, row_of: Callable[[Values, tvm.ir.Expr], tirx.Stmt]) -> tirx.Stmt:
            """`row_of(place, row)` for each of the thread's elements: the column lies along one axis, rows beside."""

            def row(i: tvm.ir.Expr) -> tirx.Stmt:
                row = i * number(warps) + warp
                here: Values = {**places, along.var: first[along.var] + column, beside.var: first[beside.var] + row}
                inside = [within(axis, here[axis.var]) for axis in (along, beside)]
                ragged = row < number(_SIDE) if _SIDE % warps else None
                return guarded(all_of([ragged, *inside]), row_of(here, row))

            return unrolled(-(-_SIDE // warps), row)

        def read(here: Values, row: tvm.ir.Expr) -> tirx.Stmt:
            place = row * number(_SIDE + 1) + column
            return sequence(
                *(
                    store(tile, [place], substitute(load, here))
                    for (tile, _), load in zip(buffers, turned.loads, strict=True)
                )
            )

        def write(here: Values, row: tvm.ir.Expr) -> tirx.Stmt:
            def from_tile(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
                for (tile, _), own in zip(buffers, turned.loads, strict=True):
                    if tvm_ffi.structural_equal(load, own):
                        return tirx.BufferLoad(tile, [column * number(_SIDE + 1) + row])
                return load

            value = tvm_ffi.structural_map(piece.value, (tvm.ir.TensorLoad, from_tile))
            return store(piece.buffer, at(piece.buffer, substitute(piece.offset, here)), substitute(value, here))

        return sequence(*(made for _, made in buffers), rows(across, inner, read), rows(inner, across, write))

    return launch(math.prod(axis.extent for axis in grid), warps * WARP, body)
