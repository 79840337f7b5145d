"""Writes the loops over one piece: outer axes, then blocks of vectors, the ragged end by blocks that overlap.

What a vector statement reads of neighbours it loads; what it reads in another order is shuffled into scratch first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.emit import loop, number, scratch, sequence, store, unrolled, vectorized
from tvmbridge.schedules.cpu.pieces import Piece, accesses, at, linear, offset_of
from tvmbridge.schedules.cpu.shares import SHARES_A_TASK, Places, Share, nest, only_first
from tvmbridge.schedules.cpu.shuffles import interleaved, strided, transposed, vector_store
from tvmbridge.schedules.cpu.stages import Axis, loads, substitute

Lay = Callable[[tvm.ir.TensorLoad], "tuple[list[tirx.Stmt], tvm.ir.Var] | None"]

_MAX_STRIDE = 4  # of a strided load by shuffles: beyond it most of what is loaded is not used
_MAX_INTERLEAVED = 8
_MIN_TILE = 4
_MAX_TILE = 16


def sweep(piece: Piece, lanes: int, unroll: int, share: Share | None) -> tirx.Stmt:
    """Compute a piece, or a task's share of it, by vectors of up to `lanes` elements, `unroll` at a time."""
    if not piece.axes:
        return only_first(share, _element(piece, {}))
    if _can_interleave(piece, lanes):
        return _interleave(piece, lanes, share)
    across = _transposed_axis(piece)
    if across is not None:
        return _tiles(piece, across, lanes, share)
    return _rows(piece, lanes, unroll, share)


def _rows(piece: Piece, lanes: int, unroll: int, share: Share | None) -> tirx.Stmt:
    """The last axis in vectors of its own."""
    *outer, inner = piece.axes
    lanes = _widest(lanes, inner)
    vectors = inner.extent // lanes
    unroll = min(unroll, vectors)

    def vector(places: Places, start: tvm.ir.Expr) -> tirx.Stmt:
        return _vector(piece, {**places, inner.var: start}, inner, lanes)

    def blocks(places: Places, block: tvm.ir.Expr) -> tirx.Stmt:
        return unrolled(unroll, lambda u: vector(places, (block * unroll + u) * lanes))

    def rest(places: Places) -> tirx.Stmt | None:
        """What the blocks leave of the axis: whole vectors, and one that ends where the axis ends."""
        done = vectors // unroll * unroll
        whole = [vector(places, number(i * lanes)) for i in range(done, vectors)]
        last = [vector(places, number(inner.extent - lanes))] if inner.extent % lanes else []
        return sequence(*whole, *last) if whole or last else None

    def row(places: Places) -> tirx.Stmt:
        return sequence(loop(vectors // unroll, lambda block: blocks(places, block), name="block"), rest(places))

    rows = math.prod(axis.extent for axis in outer)
    if share is None or rows >= share[1] * 2 or vectors // unroll < share[1] * SHARES_A_TASK:
        return nest(outer, row, share)
    # Few rows: each is dealt out by its blocks; what they leave of it is one task's.
    block_axis = Axis(tvm.ir.Var("block", "int64"), vectors // unroll)
    main = nest([*outer, block_axis], lambda places: blocks(places, places[block_axis.var]), share)
    has_rest = vectors % unroll or inner.extent % lanes
    return sequence(main, only_first(share, nest(outer, lambda p: sequence(rest(p)), None)) if has_rest else None)


def _vector(piece: Piece, places: Places, inner: Axis, lanes: int) -> tirx.Stmt:
    """One vector along the inner axis from its place on; small strides are loaded as whole vectors."""

    def lay(load: tvm.ir.TensorLoad) -> tuple[list[tirx.Stmt], tvm.ir.Var] | None:
        step = linear(offset_of(load)).steps.get(inner.var, 0)
        if lanes == 1 or not (1 < abs(step) <= _MAX_STRIDE or step == -1) or not _can_shuffle(load, [inner]):
            return None
        start = substitute(offset_of(load), places)
        return _laid([strided(load.source, start, step, lanes)], str(load.source.dtype), lanes)

    prepared, slot, written = _with_laid_out(piece, lay)
    start = places[inner.var]
    body = vectorized(lanes, lambda lane: _element(written, {**places, inner.var: start + lane, slot: lane}))
    return sequence(*prepared, body)


def _can_interleave(piece: Piece, lanes: int) -> bool:
    """Whether the last axis is short, and vectors over the last two can be shuffled out of vectors over either."""
    if len(piece.axes) < 2:
        return False
    outer, inner = piece.axes[-2:]
    written = linear(piece.offset).steps
    _, free = accesses(piece.value)
    if inner.extent >= lanes or inner.extent > _MAX_INTERLEAVED or any(axis.var in free for axis in (outer, inner)):
        return False
    if written[inner.var] != 1 or written[outer.var] != inner.extent:
        return False
    for load in loads(piece.value):
        outer_step, inner_step = _steps(load, outer, inner)
        contiguous = outer_step == inner_step * inner.extent
        if not contiguous and not (outer_step == 1 or (outer_step, inner_step) == (0, 1)):
            return False
        if not _can_shuffle(load, [outer, inner]):
            return False
    return True


def _interleave(piece: Piece, lanes: int, share: Share | None) -> tirx.Stmt:
    """The last two axes together, `lanes` steps of the outer one at a time."""
    *others, outer, inner = piece.axes
    lanes = _widest(lanes, outer)
    blocks, start_of = _blocks(outer, lanes)

    def cell(places: Places) -> tirx.Stmt:
        places = {**places, outer.var: start_of(places[blocks.var]), inner.var: number(0)}

        def lay(load: tvm.ir.TensorLoad) -> tuple[list[tirx.Stmt], tvm.ir.Var] | None:
            steps = _steps(load, outer, inner)
            if steps[0] == steps[1] * inner.extent:
                return None
            start = substitute(offset_of(load), places)
            vectors = interleaved(load.source, start, steps, inner.extent, lanes)
            return _laid(vectors, str(load.source.dtype), lanes)

        prepared, slot, written = _with_laid_out(piece, lay)

        def vector(u: tvm.ir.Expr) -> tirx.Stmt:
            # The two axes are one where they are contiguous: the inner one counts on beyond its end.
            return vectorized(
                lanes,
                lambda lane: _element(written, {**places, inner.var: u * lanes + lane, slot: u * lanes + lane}),
            )

        return sequence(*prepared, unrolled(inner.extent, vector))

    return nest([*others, blocks], cell, share)


def _transposed_axis(piece: Piece) -> Axis | None:
    """The axis along which a load is contiguous that is not so along the last one."""
    *outer, inner = piece.axes
    for axis in reversed(outer):
        for load in loads(piece.value):
            if _is_transposed(load, axis, inner) and _widest(_MAX_TILE, axis) >= _MIN_TILE <= inner.extent:
                return axis
    return None


def _is_transposed(load: tvm.ir.TensorLoad, across: Axis, inner: Axis) -> bool:
    steps = _steps(load, across, inner)
    return steps[0] == 1 and abs(steps[1]) > _MAX_STRIDE and _can_shuffle(load, [across, inner])


def _tiles(piece: Piece, across: Axis, lanes: int, share: Share | None) -> tirx.Stmt:
    """Squares of two axes: read along one, transposed in registers, written along the other."""
    inner = piece.axes[-1]
    others = [axis for axis in piece.axes if axis is not across and axis is not inner]
    lanes = min(_widest(lanes, across), _widest(lanes, inner), _MAX_TILE)
    across_blocks, across_start = _blocks(across, lanes)
    inner_blocks, inner_start = _blocks(inner, lanes)

    def cell(places: Places) -> tirx.Stmt:
        row, column = across_start(places[across_blocks.var]), inner_start(places[inner_blocks.var])
        places = {**places, across.var: row, inner.var: column}

        def lay(load: tvm.ir.TensorLoad) -> tuple[list[tirx.Stmt], tvm.ir.Var] | None:
            if not _is_transposed(load, across, inner):
                return None
            start = substitute(offset_of(load), places)
            statements, columns = transposed(load.source, start, _steps(load, across, inner)[1], lanes)
            stored, laid = _laid(columns, str(load.source.dtype), lanes)
            return [*statements, *stored], laid

        prepared, slot, written = _with_laid_out(piece, lay)

        def vector(u: tvm.ir.Expr) -> tirx.Stmt:
            moved = {**places, across.var: row + u}
            return vectorized(
                lanes, lambda lane: _element(written, {**moved, inner.var: column + lane, slot: u * lanes + lane})
            )

        return sequence(*prepared, unrolled(lanes, vector))

    return nest([*others, across_blocks, inner_blocks], cell, share)


def _element(piece: Piece, places: Places) -> tirx.Stmt:
    return store(piece.buffer, at(piece.buffer, substitute(piece.offset, places)), substitute(piece.value, places))


def _widest(lanes: int, axis: Axis) -> int:
    """The lanes of a vector that the axis fills."""
    return min(lanes, 1 << (axis.extent.bit_length() - 1))


def _blocks(axis: Axis, size: int) -> tuple[Axis, Callable[[tvm.ir.Expr], tvm.ir.Expr]]:
    """An axis of blocks, and where on the axis a block starts: the last one ends with the axis, over the one before."""
    blocks = Axis(tvm.ir.Var(f"{axis.var.name}_block", "int64"), -(-axis.extent // size))
    if axis.extent % size == 0:
        return blocks, lambda block: block * size
    return blocks, lambda block: tirx.min(block * size, number(axis.extent - size))


def _steps(load: tvm.ir.TensorLoad, outer: Axis, inner: Axis) -> tuple[int, int]:
    steps = linear(offset_of(load)).steps
    return steps.get(outer.var, 0), steps.get(inner.var, 0)


def _can_shuffle(load: tvm.ir.TensorLoad, axes: list[Axis]) -> bool:
    """Whether the offset is linear in the axes. A vector of booleans is not what memory holds of them."""
    rest = [var for other in linear(offset_of(load)).others for var in tirx.analysis.undefined_vars(other)]
    return str(load.source.dtype) != "bool" and not any(axis.var in rest for axis in axes)


def _laid(vectors: list[tvm.ir.Expr], dtype: str, lanes: int) -> tuple[list[tirx.Stmt], tvm.ir.Var]:
    """Scratch that holds the vectors one after another; its constant places make registers of it."""
    buffer, allocation = scratch([len(vectors) * lanes], dtype, "laid")
    stores = [vector_store(buffer, i * lanes, vector, lanes) for i, vector in enumerate(vectors)]
    return [allocation, *stores], buffer


def _with_laid_out(piece: Piece, lay: Lay) -> tuple[list[tirx.Stmt], tvm.ir.Var, Piece]:
    """What `lay` lays out of the loads, done first; the variable for the place in it; the piece that reads it there."""
    slot = tvm.ir.Var("slot", "int64")
    prepared: list[tirx.Stmt] = []
    done: list[tuple[tvm.ir.TensorLoad, tvm.ir.TensorLoad]] = []
    for load in loads(piece.value):
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
