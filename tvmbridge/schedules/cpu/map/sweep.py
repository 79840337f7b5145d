"""Writes the loops over one piece: outer axes, then blocks of vectors, the ragged end by blocks that overlap.

What a vector statement reads of neighbours it loads; what it reads in another order is shuffled into scratch first.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.map.gathered import (
    MAX_STRIDE,
    Laid,
    can_shuffle,
    element,
    laid_out,
    with_laid_out,
)
from tvmbridge.schedules.cpu.map.shuffles import strided
from tvmbridge.schedules.cpu.map.tiles import can_interleave, interleave, tiles, tiling_of
from tvmbridge.schedules.loops.emit import loop, sequence, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, chooses, number, substitute
from tvmbridge.schedules.loops.indices import linear, offset
from tvmbridge.schedules.loops.shares import SHARES_A_TASK, Share, only_first, shared_nest
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import within
from tvmbridge.schedules.reading.pieces import Piece


def sweep(piece: Piece, lanes: int, unroll: int, share: Share | None) -> tirx.Stmt:
    """Compute a piece, or a task's share of it, by vectors of up to `lanes` elements, `unroll` at a time."""
    if not piece.axes:
        return only_first(share, element(piece, {}))
    if can_interleave(piece, lanes):
        return interleave(piece, lanes, share)
    tiling = None if chooses(piece.value) else tiling_of(piece, lanes)
    return _rows(piece, lanes, unroll, share) if tiling is None else tiles(piece, tiling, share)


def _rows(piece: Piece, lanes: int, unroll: int, share: Share | None) -> tirx.Stmt:
    """The last axis in vectors of its own."""
    *outer, inner = piece.axes
    lanes = within(inner.extent, lanes)
    vectors = inner.extent // lanes
    unroll = min(unroll, vectors)

    def vector(places: Values, start: tvm.ir.Expr) -> tirx.Stmt:
        return _vector(piece, {**places, inner.var: start}, inner, lanes)

    def blocks(places: Values, block: tvm.ir.Expr) -> tirx.Stmt:
        return unrolled(unroll, lambda u: vector(places, (block * unroll + u) * lanes))

    def rest(places: Values) -> tirx.Stmt | None:
        """What the blocks leave of the axis: whole vectors, and one that ends where the axis ends."""
        done = vectors // unroll * unroll
        whole = [vector(places, number(i * lanes)) for i in range(done, vectors)]
        last = [vector(places, number(inner.extent - lanes))] if inner.extent % lanes else []
        return sequence(*whole, *last) if whole or last else None

    def row(places: Values) -> tirx.Stmt:
        return sequence(loop(vectors // unroll, lambda block: blocks(places, block), name="block"), rest(places))

    rows = math.prod(axis.extent for axis in outer)
    if share is None or rows >= share[1] * 2 or vectors // unroll < share[1] * SHARES_A_TASK:
        return shared_nest(outer, row, share)
    # Few rows: each is dealt out by its blocks; what they leave of it is one task's.
    block_axis = Axis(tvm.ir.Var("block", "int64"), vectors // unroll)
    main = shared_nest([*outer, block_axis], lambda places: blocks(places, places[block_axis.var]), share)
    has_rest = vectors % unroll or inner.extent % lanes
    return sequence(
        main, only_first(share, shared_nest(outer, lambda p: sequence(rest(p)), None)) if has_rest else None
    )


def _vector(piece: Piece, places: Values, inner: Axis, lanes: int) -> tirx.Stmt:
    """One vector along the inner axis from its place on; small strides are loaded as whole vectors."""

    def lay(load: tvm.ir.TensorLoad) -> Laid | None:
        step = linear(offset(load)).steps.get(inner.var, 0)
        if lanes == 1 or not (1 < abs(step) <= MAX_STRIDE or step == -1) or not can_shuffle(load, [inner]):
            return None
        start = substitute(offset(load), places)
        return laid_out([strided(load.source, start, step, lanes)], str(load.source.dtype), lanes)

    prepared, slot, written = with_laid_out(piece, lay)
    start = places[inner.var]
    body = vectorized(lanes, lambda lane: element(written, {**places, inner.var: start + lane, slot: lane}))
    return sequence(*prepared, body)
