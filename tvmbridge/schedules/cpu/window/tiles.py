"""The loops of a sliding-window kernel: rows of tiles, each of which accumulates in vector registers.

A tile is some neighbouring positions of the output along one axis × some vectors of channels. Its taps along that axis
are written out in the order in which they touch the input, so that an input is loaded once for all the windows that
overlap it. Nothing is copied to be padded: tiles at the border along the axis are written out without the taps that
would be padding, and along the other axes rows at the border loop over the taps that count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.emit import Body, loop, scratch, sequence, span, store, vectorized
from tvmbridge.schedules.loops.expressions import Values, number, replace_loads, substitute
from tvmbridge.schedules.loops.indices import coordinates
from tvmbridge.schedules.loops.tiling import Blocks, cut
from tvmbridge.schedules.reading.sliding import Slide, Sliding

_WRITTEN_OUT = 128  # vector operations written out in one tile: longer code brings nothing, and compiles slowly
_BORDER_TILES = 8  # tiles without some taps, each written out on its own

_OfTaps = Callable[[Values], tirx.Stmt]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A kernel cut into tiles of at most `positions` positions × `vectors` vectors of `lanes` channels."""

    sliding: Sliding
    lanes: int
    vectors: int
    positions: int

    @property
    def slide(self) -> Slide:
        """The one that is tiled: the innermost whose windows reach over more than one position."""
        return max(self.sliding.slides, key=lambda slide: (slide.window > 1, self.sliding.slides.index(slide)))

    @property
    def others(self) -> list[Slide]:
        """The slides that are not tiled."""
        return [slide for slide in self.sliding.slides if slide is not self.slide]

    @property
    def rows(self) -> int:
        """How many rows of tiles there are."""
        return math.prod(slide.axis.extent for slide in self.others)

    @property
    def groups(self) -> Blocks:
        """The channels of each tile, of those at which all taps count."""
        return Blocks(len(self.sliding.across.whole), self.lanes * self.vectors)

    @property
    def steps(self) -> int:
        """Vector operations of the whole kernel."""
        channels = math.ceil(self.sliding.channels.extent / self.lanes) * self.sliding.across.window
        return channels * math.prod(slide.axis.extent * slide.window for slide in self.sliding.slides)

    @property
    def written_out(self) -> bool:
        """Whether the taps along the tile are written out. Where they are a loop, a tile has one position."""
        border = sum(not inside for *_, inside in self.sections)
        return self.slide.window * self.positions * self.vectors <= _WRITTEN_OUT and border <= _BORDER_TILES

    @property
    def all_written_out(self) -> bool:
        """Whether the taps along the other axes are written out too, where none of them is padding."""
        taps = math.prod(slide.window for slide in (*self.sliding.slides, self.sliding.across))
        return self.written_out and taps * self.positions * self.vectors <= _WRITTEN_OUT

    @property
    def sections(self) -> list[tuple[int, int, int, bool]]:
        """Runs of equal tiles as (first position, tile size, how many, whether all taps count)."""
        whole = self.slide.whole
        found: list[tuple[int, int, int, bool]] = []
        first = 0
        for size in cut(self.slide.axis.extent, self.positions).sizes:
            inside = whole.start <= first and first + size <= whole.stop
            if inside and found and found[-1][1] == size and found[-1][3]:
                start, _, count, _ = found.pop()
                found.append((start, size, count + 1, True))
            else:
                found.append((first, size, 1, inside))
            first += size
        return found


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One vector of results. place: of its first lane. register: the buffer that accumulates it."""

    sliding: Sliding
    lanes: int
    place: Values
    register: tvm.ir.Var

    def start(self) -> tirx.Stmt:
        """The register as it is before the first tap."""
        return self._put(self.register, None, self.sliding.init, {})

    def step(self, taps: Values) -> tirx.Stmt:
        """One tap into the register."""
        return self._put(self.register, None, self.sliding.update, taps)

    def finish(self) -> tirx.Stmt:
        """What becomes of the register."""
        return self._put(self.sliding.stored, self.sliding.indices, self.sliding.value, {})

    def _put(
        self, buffer: tvm.ir.Var, indices: tuple[tvm.ir.Expr, ...] | None, value: tvm.ir.Expr, taps: Values
    ) -> tirx.Stmt:
        channel, accumulator = self.sliding.channels.var, self.sliding.accumulator

        def at(lane: tvm.ir.Expr) -> tirx.Stmt:
            here = {**self.place, **taps, channel: self.place[channel] + lane}
            held = tirx.BufferLoad(self.register, [lane])
            computed = replace_loads(substitute(value, here), accumulator, lambda _indices: held)
            return store(buffer, [lane] if indices is None else [substitute(i, here) for i in indices], computed)

        return vectorized(self.lanes, at)


@dataclasses.dataclass(frozen=True)
class _Spot:
    """Positions of a tile: `size` from `first`. known: the same as first, where taps along them may be padding."""

    first: tvm.ir.Expr
    size: int
    known: int | None


def _tile(tiling: Tiling, place: Values, spot: _Spot, whole: bool, edge: bool) -> tirx.Stmt:
    """One tile. whole: along the other axes no tap is padding. edge: along the channels some are; it is of one."""
    slide, across = tiling.slide, tiling.sliding.across
    lanes, vectors = (1, 1) if edge else (tiling.lanes, tiling.vectors)
    channel = across.axis.var
    cells: dict[tuple[int, int], _Cell] = {}
    made = []
    for position, vector in itertools.product(range(spot.size), range(vectors)):
        # A buffer for each: together they may be too large for the stack, and so for registers.
        register, made_here = scratch([lanes], str(tiling.sliding.accumulator.dtype), "register")
        here = {**place, slide.axis.var: spot.first + position, channel: place[channel] + vector * lanes}
        cells[position, vector] = _Cell(tiling.sliding, lanes, here, register)
        made.append(made_here)

    def written_out(taps: Values) -> tirx.Stmt:
        steps = [
            cells[position, vector].step({**taps, **({slide.taps.var: number(tap)} if slide.taps else {})})
            for position, tap in _in_order_of_input(slide, spot.size)
            if spot.known is None or slide.counts(spot.known + position, tap)
            for vector in range(vectors)
        ]
        return sequence(*steps)  # of none, where all taps are padding

    def looped(taps: Values) -> tirx.Stmt:
        return sequence(*(cell.step(taps) for cell in cells.values()))

    body: _OfTaps = written_out if tiling.written_out else _over_taps(slide, spot.first, False, False, looped)
    body = _over_taps(across, place[channel], not edge, tiling.all_written_out, body)
    for other in reversed(tiling.others):
        body = _over_taps(other, place[other.axis.var], whole, tiling.all_written_out, body)
    return sequence(
        *made, *(cell.start() for cell in cells.values()), body({}), *(cell.finish() for cell in cells.values())
    )


def _in_order_of_input(slide: Slide, size: int) -> list[tuple[int, int]]:
    """Each (position, tap) of a tile, those that read the same input together."""
    pairs = itertools.product(range(size), range(slide.window))
    return sorted(pairs, key=lambda pair: pair[0] * slide.stride + pair[1] * slide.dilation)


def _over_taps(slide: Slide, position: tvm.ir.Expr, whole: bool, written_out: bool, body: _OfTaps) -> _OfTaps:
    """`body` for every tap along one axis that counts at a position. whole: all do."""

    def over(taps: Values) -> tirx.Stmt:
        def at(tap: tvm.ir.Expr) -> tirx.Stmt:
            return body({**taps, slide.taps.var: tap} if slide.taps else taps)

        if not whole and slide.padded:
            first = slide.first_tap(position)
            return span(first, tirx.max(first, slide.end_tap(position)), at)
        if not written_out:
            return loop(slide.window, at)
        return sequence(*(at(number(tap)) for tap in range(slide.window)))

    return over


def row(tiling: Tiling, index: tvm.ir.Expr, over_groups: Callable[[Body], tirx.Stmt]) -> tirx.Stmt:
    """One row of tiles: in the middle of the other axes with all taps, at their borders with those that count.

    over_groups: the loop over the groups of channels.
    """
    place = coordinates(index, [slide.axis for slide in tiling.others])
    middle: list[tvm.ir.Expr] = []
    for slide in tiling.others:
        if slide.padded:
            position = place[slide.axis.var]
            middle += [position >= slide.whole.start, position < slide.whole.stop]
    if not middle:
        return _tiles(tiling, place, over_groups, True)
    border = _tiles(tiling, place, over_groups, False)
    if not all(slide.whole for slide in tiling.others):
        return border
    return tirx.IfThenElse(tirx.all(*middle), _tiles(tiling, place, over_groups, True), border)


def _tiles(tiling: Tiling, place: Values, over_groups: Callable[[Body], tirx.Stmt], whole: bool) -> tirx.Stmt:
    channels, inside = tiling.sliding.channels, tiling.sliding.across.whole

    def tiles(spot: _Spot) -> tirx.Stmt:
        def of_group(group: tvm.ir.Expr) -> tirx.Stmt:
            channel = tiling.groups.start(group) + inside.start
            return _tile(tiling, {**place, channels.var: channel}, spot, whole, False)

        def of_edge(first: int, end: int) -> tirx.Stmt | None:
            if first == end:
                return None
            return loop(end - first, lambda i: _tile(tiling, {**place, channels.var: i + first}, spot, whole, True))

        return sequence(over_groups(of_group), of_edge(0, inside.start), of_edge(inside.stop, channels.extent))

    def run(start: int, size: int, count: int, all_count: bool) -> tirx.Stmt:
        if all_count:
            return loop(count, lambda i: tiles(_Spot(i * size + start, size, None)))
        return tiles(_Spot(number(start), size, start))

    if not tiling.written_out:
        return loop(tiling.slide.axis.extent, lambda position: tiles(_Spot(position, 1, None)))
    return sequence(*itertools.starmap(run, tiling.sections))
