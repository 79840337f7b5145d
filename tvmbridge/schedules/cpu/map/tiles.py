"""Pieces that read along one axis and write along another: tiles of both, shuffled in registers."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.map.gathered import (
    MAX_STRIDE,
    Laid,
    blocks_of,
    can_shuffle,
    element,
    laid_out,
    steps_along,
    with_laid_out,
)
from tvmbridge.schedules.cpu.map.shuffles import deinterleaved, interleaved, transposed
from tvmbridge.schedules.loops.emit import sequence, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, chooses, loads, number, substitute
from tvmbridge.schedules.loops.indices import linear, offset
from tvmbridge.schedules.loops.shares import Share, shared_nest
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import within
from tvmbridge.schedules.reading.pieces import Piece, accesses

_MAX_INTERLEAVED = 8
_MIN_TILE = 4
_MAX_TILE = 16


def can_interleave(piece: Piece, lanes: int) -> bool:
    """Whether the last axis is short, and vectors over the last two can be shuffled out of vectors over either."""
    if len(piece.axes) < 2 or chooses(piece.value):
        return False
    outer, inner = piece.axes[-2:]
    written = linear(piece.offset).steps
    _, free = accesses(piece.value)
    if inner.extent >= lanes or inner.extent > _MAX_INTERLEAVED or any(axis.var in free for axis in (outer, inner)):
        return False
    if written[inner.var] != 1 or written[outer.var] != inner.extent:
        return False
    for load in loads(piece.value):
        outer_step, inner_step = steps_along(load, outer, inner)
        contiguous = outer_step == inner_step * inner.extent
        if not contiguous and not (outer_step == 1 or (outer_step, inner_step) == (0, 1)):
            return False
        if not can_shuffle(load, [outer, inner]):
            return False
    return True


def interleave(piece: Piece, lanes: int, share: Share | None) -> tirx.Stmt:
    """The last two axes together, `lanes` steps of the outer one at a time."""
    *others, outer, inner = piece.axes
    lanes = within(outer.extent, lanes)
    blocks, start_of = blocks_of(outer, lanes)

    def cell(places: Values) -> tirx.Stmt:
        places = {**places, outer.var: start_of(places[blocks.var]), inner.var: number(0)}

        def lay(load: tvm.ir.TensorLoad) -> Laid | None:
            steps = steps_along(load, outer, inner)
            if steps[0] == steps[1] * inner.extent:
                return None
            start = substitute(offset(load), places)
            vectors = interleaved(load.source, start, steps, inner.extent, lanes)
            return laid_out(vectors, str(load.source.dtype), lanes)

        prepared, slot, written = with_laid_out(piece, lay)

        def vector(u: tvm.ir.Expr) -> tirx.Stmt:
            # The two axes are one where they are contiguous: the inner one counts on beyond its end.
            return vectorized(
                lanes,
                lambda lane: element(written, {**places, inner.var: u * lanes + lane, slot: u * lanes + lane}),
            )

        return sequence(*prepared, unrolled(inner.extent, vector))

    return shared_nest([*others, blocks], cell, share)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of `height` steps of the axis `across` and `lanes` of the last one.

    whole: a tile is all of `across`, and one run of neighbours in memory; otherwise it is a square.
    """

    across: Axis
    height: int
    lanes: int
    whole: bool

    def takes(self, load: tvm.ir.TensorLoad, inner: Axis) -> bool:
        """Whether a load is contiguous along `across`, and is so that its tiles can be transposed."""
        outer_step, inner_step = steps_along(load, self.across, inner)
        if outer_step != 1 or not can_shuffle(load, [self.across, inner]):
            return False
        return inner_step == self.height if self.whole else abs(inner_step) > MAX_STRIDE


def tiling_of(piece: Piece, lanes: int) -> Tiling | None:
    """The tiles for a load that is contiguous along another axis than the last; None where none is."""
    *outer, inner = piece.axes
    for axis in reversed(outer):
        size = min(within(axis.extent, lanes), within(inner.extent, lanes), _MAX_TILE)
        whole = Tiling(axis, axis.extent, within(inner.extent, lanes), whole=True)
        square = Tiling(axis, size, size, whole=False)
        for load in loads(piece.value):
            if axis.extent <= MAX_STRIDE and whole.takes(load, inner):
                return whole
            if size >= _MIN_TILE and square.takes(load, inner):
                return square
    return None


def tiles(piece: Piece, tiling: Tiling, share: Share | None) -> tirx.Stmt:
    """Two axes in tiles: read along one axis, transposed in registers, written along the other."""
    across, inner, lanes = tiling.across, piece.axes[-1], tiling.lanes
    others = [axis for axis in piece.axes if axis is not across and axis is not inner]
    across_blocks, across_start = blocks_of(across, tiling.height)
    inner_blocks, inner_start = blocks_of(inner, lanes)

    def cell(places: Values) -> tirx.Stmt:
        row, column = across_start(places[across_blocks.var]), inner_start(places[inner_blocks.var])
        places = {**places, across.var: row, inner.var: column}

        def lay(load: tvm.ir.TensorLoad) -> Laid | None:
            if not tiling.takes(load, inner):
                return None
            start, step = substitute(offset(load), places), steps_along(load, across, inner)[1]
            if tiling.whole:
                return laid_out(deinterleaved(load.source, start, step, lanes), str(load.source.dtype), lanes)
            statements, vectors = transposed(load.source, start, step, lanes)
            stored, laid = laid_out(vectors, str(load.source.dtype), lanes)
            return [*statements, *stored], laid

        prepared, slot, written = with_laid_out(piece, lay)

        def vector(u: tvm.ir.Expr) -> tirx.Stmt:
            moved = {**places, across.var: row + u}
            return vectorized(
                lanes, lambda lane: element(written, {**moved, inner.var: column + lane, slot: u * lanes + lane})
            )

        return sequence(*prepared, unrolled(tiling.height, vector))

    return shared_nest([*others, across_blocks, inner_blocks], cell, share)
