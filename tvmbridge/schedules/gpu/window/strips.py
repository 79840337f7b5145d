"""Writes a sliding window for a GPU: strips of positions, each of a thread, whose results add up in registers.

Nothing is copied to be padded. Where all taps of a strip count they are written out without a condition, so that what
neighbouring positions share is loaded once; the strips at a border loop over the taps that count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.lanes import in_lane, widest_lanes
from tvmbridge.schedules.gpu.launch import all_of, guarded, launch, registers
from tvmbridge.schedules.loops.emit import loop, sequence, span, store, vectorized
from tvmbridge.schedules.loops.expressions import Values, number, replace_loads, substitute
from tvmbridge.schedules.loops.indices import coordinates, flat_offset
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.reading.sliding import Slide, Sliding

_WRITTEN_OUT = 128  # taps × positions that are written out; of more, the taps along the outer axes are loops

_OfTaps = Callable[[Values], tirx.Stmt]


def lanes_of_channels(sliding: Sliding, most: int) -> int:
    """The most channels up to `most` that a thread computes as a vector."""
    if sliding.across.window > 1 or sliding.across.padded:
        return 1
    stored = flat_offset(sliding.stored, sliding.indices)
    return widest_lanes([sliding.update, sliding.value], [stored], sliding.channels.var, sliding.channels.extent, most)


@dataclasses.dataclass(frozen=True)
class Strips:
    """A kernel cut into strips of at most `positions` positions × `lanes` channels."""

    sliding: Sliding
    positions: int
    lanes: int

    @property
    def slide(self) -> Slide:
        """The one that strips lie along: the innermost whose windows reach over more than one position."""
        return max(self.sliding.slides, key=lambda slide: (slide.window > 1, self.sliding.slides.index(slide)))

    @property
    def others(self) -> list[Slide]:
        """The slides across the strips."""
        return [slide for slide in self.sliding.slides if slide is not self.slide]

    @property
    def along(self) -> int:
        """How many strips lie one behind the other."""
        return -(-self.slide.axis.extent // self.positions)

    @property
    def threads(self) -> int:
        """How many strips there are."""
        rows = math.prod(slide.axis.extent for slide in self.others)
        return rows * self.along * (self.sliding.channels.extent // self.lanes)

    @property
    def taps(self) -> int:
        """Of a window."""
        return math.prod(slide.window for slide in (*self.sliding.slides, self.sliding.across))


def write_strips(strips: Strips, threads: int) -> tirx.Stmt:
    """A launch of blocks of so many threads, one of them for each strip; neighbours have neighbouring channels."""
    strip, vector = (
        Axis(tvm.ir.Var("strip", "int64"), strips.along),
        Axis(tvm.ir.Var("vector", "int64"), strips.sliding.channels.extent // strips.lanes),
    )
    axes = [*(slide.axis for slide in strips.others), strip, vector]
    total = strips.threads
    threads = min(threads, -(-total // 32) * 32)

    def body(block: tvm.ir.Var, thread: tvm.ir.Var) -> tirx.Stmt:
        index = block * number(threads) + thread
        places = coordinates(index, axes)
        first = places.pop(strip.var) * number(strips.positions)
        statement = _Strip(strips, places, first, places.pop(vector.var)).written()
        return guarded(index < number(total) if total % threads else None, statement)

    return launch(-(-total // threads), threads, body)


@dataclasses.dataclass(frozen=True)
class _Strip:
    """One strip. places: on the axes across it. first: its first position. vector: which channels."""

    strips: Strips
    places: Values
    first: tvm.ir.Expr
    vector: tvm.ir.Expr

    def written(self) -> tirx.Stmt:
        """All of it: registers cleared, taps added, results stored."""
        strips, sliding = self.strips, self.strips.sliding
        sums, made = registers(strips.positions * strips.lanes, str(sliding.accumulator.dtype), "sums")
        cleared = [self._cleared(sums, position) for position in range(strips.positions)]
        whole = self._all_taps(sums)
        slides = [*strips.others, strips.slide, sliding.across]
        if any(slide.padded for slide in slides):
            inside = self._inside()
            whole = (
                self._counting_taps(sums)
                if inside is None
                else tirx.IfThenElse(inside, whole, self._counting_taps(sums))
            )
        elif strips.slide.axis.extent % strips.positions:
            # The last strip is shorter: no input lies where it would stand over.
            complete = self.first + number(strips.positions) <= number(strips.slide.axis.extent)
            whole = tirx.IfThenElse(complete, whole, self._counting_taps(sums))
        stored = [guarded(self._exists(p), self._stored(sums, p)) for p in range(strips.positions)]
        return sequence(made, *cleared, whole, *stored)

    def _exists(self, position: int) -> tvm.ir.Expr | None:
        """Whether the strip has this position; None: every strip has."""
        if self.strips.slide.axis.extent % self.strips.positions == 0 or position == 0:
            return None
        return self.first + number(position) < number(self.strips.slide.axis.extent)

    def _inside(self) -> tvm.ir.Expr | None:
        """Whether every tap counts at all positions of the strip; None: nowhere."""
        strips = self.strips
        ends = [(self.places[other.axis.var], 1, other) for other in strips.others]
        ends += [(self.first, strips.positions, strips.slide), (self.vector, 1, strips.sliding.across)]
        conditions: list[tvm.ir.Expr | None] = []
        for place, size, slide in ends:
            if slide is strips.sliding.across and not slide.padded:
                continue
            if len(slide.whole) < size:
                return None
            if slide.padded or slide.axis.extent % size:
                conditions += [
                    place >= number(slide.whole.start) if slide.whole.start else None,
                    place + number(size) <= number(slide.whole.stop),
                ]
        return all_of(conditions)

    def _all_taps(self, sums: tvm.ir.Var) -> tirx.Stmt:
        """Every tap of every position, those of one input together."""
        strips, sliding = self.strips, self.strips.sliding
        slide = strips.slide
        pairs = sorted(
            itertools.product(range(strips.positions), range(slide.window)),
            key=lambda pair: pair[0] * slide.stride + pair[1] * slide.dilation,
        )

        def row(taps: Values) -> tirx.Stmt:
            return sequence(*(self._tap(sums, p, {**taps, **_tap(slide, number(tap))}) for p, tap in pairs))

        written_out = strips.taps * strips.positions <= _WRITTEN_OUT
        body: _OfTaps = row if slide.window * strips.positions <= _WRITTEN_OUT else self._looped(sums)
        for other in reversed([*strips.others, sliding.across]):
            body = _over(other, written_out, body)
        return body({})

    def _looped(self, sums: tvm.ir.Var) -> _OfTaps:
        """The taps along the strip as a loop, for windows too long to be written out."""
        slide = self.strips.slide

        def row(taps: Values) -> tirx.Stmt:
            return loop(
                slide.window,
                lambda tap: sequence(
                    *(self._tap(sums, p, {**taps, **_tap(slide, tap)}) for p in range(self.strips.positions))
                ),
            )

        return row

    def _counting_taps(self, sums: tvm.ir.Var) -> tirx.Stmt:
        """The taps that count, position by position."""
        strips, sliding = self.strips, self.strips.sliding

        def of(position: int) -> tirx.Stmt:
            places = {**self.places, strips.slide.axis.var: self.first + number(position)}
            places[sliding.channels.var] = self.vector
            body: _OfTaps = lambda taps: self._tap(sums, position, taps)  # noqa: E731
            for slide in reversed([*strips.others, strips.slide, sliding.across]):
                body = _over_counting(slide, places[slide.axis.var], body)
            return guarded(self._exists(position), body({}))

        return sequence(*(of(position) for position in range(strips.positions)))

    def _cleared(self, sums: tvm.ir.Var, position: int) -> tirx.Stmt:
        init = self.strips.sliding.init
        return vectorized(self.strips.lanes, lambda lane: store(sums, self._slot(position, lane), init))

    def _tap(self, sums: tvm.ir.Var, position: int, taps: Values) -> tirx.Stmt:
        def added(lane: tvm.ir.Expr) -> tirx.Stmt:
            value = self._at(self.strips.sliding.update, sums, position, lane, taps)
            return store(sums, self._slot(position, lane), value)

        return vectorized(self.strips.lanes, added)

    def _stored(self, sums: tvm.ir.Var, position: int) -> tirx.Stmt:
        sliding = self.strips.sliding

        def result(lane: tvm.ir.Expr) -> tirx.Stmt:
            channel = self.vector * number(self.strips.lanes) + lane
            here = {**self._here(position), sliding.channels.var: channel}
            indices = [substitute(index, here) for index in sliding.indices]
            return store(sliding.stored, indices, self._at(sliding.value, sums, position, lane, {}))

        return vectorized(self.strips.lanes, result)

    def _slot(self, position: int, lane: tvm.ir.Expr) -> list[tvm.ir.Expr]:
        return [number(position * self.strips.lanes) + lane]

    def _here(self, position: int) -> Values:
        return {**self.places, self.strips.slide.axis.var: self.first + number(position)}

    def _at(self, expr: tvm.ir.Expr, sums: tvm.ir.Var, position: int, lane: tvm.ir.Expr, taps: Values) -> tvm.ir.Expr:
        sliding = self.strips.sliding
        expr = in_lane(expr, sliding.channels.var, self.strips.lanes, self.vector, lane)
        expr = substitute(expr, {**self._here(position), **taps})
        held = tirx.BufferLoad(sums, self._slot(position, lane))
        return replace_loads(expr, sliding.accumulator, lambda _indices: held)


def _tap(slide: Slide, tap: tvm.ir.Expr) -> Values:
    return {slide.taps.var: tap} if slide.taps else {}


def _over(slide: Slide, written_out: bool, body: _OfTaps) -> _OfTaps:
    """`body` for every tap along an axis."""

    def over(taps: Values) -> tirx.Stmt:
        if not written_out:
            return loop(slide.window, lambda tap: body({**taps, **_tap(slide, tap)}))
        return sequence(*(body({**taps, **_tap(slide, number(tap))}) for tap in range(slide.window)))

    return over


def _over_counting(slide: Slide, position: tvm.ir.Expr, body: _OfTaps) -> _OfTaps:
    """`body` for every tap along an axis that counts at a position."""

    def over(taps: Values) -> tirx.Stmt:
        if not slide.padded:
            return loop(slide.window, lambda tap: body({**taps, **_tap(slide, tap)}))
        first = slide.first_tap(position)
        return span(first, tirx.max(first, slide.end_tap(position)), lambda tap: body({**taps, **_tap(slide, tap)}))

    return over
