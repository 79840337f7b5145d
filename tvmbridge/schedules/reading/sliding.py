"""Recognises a kernel that slides a window over a tensor: depthwise convolution, max and average pooling of any rank.

What is looked at is what the kernel computes, never what it is called: a reduction over `input[.., p * stride + t *
dilation + offset, .., c]`, where p is a position of the output, t a tap of the window and c the last, contiguous axis,
along which the window may slide too, by steps of one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import chooses, constant, is_choice, loads, loads_of, number, substitute
from tvmbridge.schedules.loops.indices import Linear, sum_over
from tvmbridge.schedules.loops.stages import Axis, Stage, inline, read_stages


@dataclasses.dataclass(frozen=True)
class Slide:
    """One axis of the output and the taps of the window along it.

    A tap counts where lowest <= position * stride + tap * dilation < highest, and is padding elsewhere. None: always.
    """

    axis: Axis
    taps: Axis | None
    stride: int
    dilation: int
    lowest: int | None = None
    highest: int | None = None

    @property
    def window(self) -> int:
        """How many taps there are."""
        return self.taps.extent if self.taps else 1

    @property
    def padded(self) -> bool:
        """Whether a tap is padding somewhere."""
        return len(self.whole) < self.axis.extent

    def counts(self, position: int, tap: int) -> bool:
        """Whether a tap is no padding."""
        at = position * self.stride + tap * self.dilation
        return (self.lowest is None or self.lowest <= at) and (self.highest is None or at < self.highest)

    @functools.cached_property
    def whole(self) -> range:
        """The positions at which every tap counts."""
        inside = [p for p in range(self.axis.extent) if self.counts(p, 0) and self.counts(p, self.window - 1)]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def first_tap(self, position: tvm.ir.Expr) -> tvm.ir.Expr:
        """The first tap that counts at a position."""
        if self.lowest is None:
            return number(0)
        return tirx.max(0, _ceil_div(self.lowest - position * self.stride, self.dilation))

    def end_tap(self, position: tvm.ir.Expr) -> tvm.ir.Expr:
        """Behind the last tap that counts at a position."""
        if self.highest is None:
            return number(self.window)
        return tirx.min(self.window, _ceil_div(self.highest - position * self.stride, self.dilation))


def _ceil_div(value: tvm.ir.Expr, divisor: int) -> tvm.ir.Expr:
    return value if divisor == 1 else tirx.floordiv(value + (divisor - 1), divisor)


@dataclasses.dataclass(frozen=True)
class Sliding:
    """A sliding-window reduction, and what is done to each of its results.

    slides: of every axis of the output but the last, in order.
    across: of the last axis, whose neighbours lie beside each other in the input too.
    init: what a result starts as. Padding would not change a result, and is not in `update`.
    accumulator: what `update` reads and writes at the result's own place.
    stored, indices, value: `stored[indices] = value` is what becomes of the result; `value` reads it in `accumulator`.
    """

    slides: tuple[Slide, ...]
    across: Slide
    accumulator: tvm.ir.Var
    init: tvm.ir.Expr
    update: tvm.ir.Expr
    stored: tvm.ir.Var
    indices: tuple[tvm.ir.Expr, ...]
    value: tvm.ir.Expr

    @property
    def channels(self) -> Axis:
        """The last axis."""
        return self.across.axis


def read_sliding(function: tirx.PrimFunc) -> Sliding | None:
    """The kernel as one sliding-window reduction with an element-wise tail; None where it is anything else."""
    stages = read_stages(function)
    if stages is None or sum(stage.output for stage in stages) != 1:
        return None
    first, *rest = inline(stages, lambda _stage: False)
    if not first.reduction or len(rest) > 1 or len(first.spatial) < 2 or any(stage.reduction for stage in rest):
        return None
    known = {*function.params, first.buffer}
    for stage in (first, *rest):
        if any(axis.extent < 1 for axis in stage.axes):
            return None
        if not all(load.source in known for load in loads(stage.value)):
            return None
    outcome = _outcome(first, rest[0] if rest else None)
    update = _without_padding(first)
    if outcome is None or update is None or loads(first.init) or not _at_own_place(first):
        return None
    single = {axis.var: number(0) for axis in first.reduction if axis.extent == 1}
    value, *conditions = (substitute(expr, single) for expr in update)
    slides = _slides(first, value)
    for condition in conditions:
        slides = None if slides is None else _narrowed(slides, condition)
    if slides is None or 2 * len(slides[-1].whole) < slides[-1].axis.extent:
        return None  # too little of the last axis lies between its borders to be worth vectors
    return Sliding(slides[:-1], slides[-1], first.buffer, first.init, value, *outcome)


def _at_own_place(stage: Stage) -> bool:
    """Whether the stage stores at its axes, and reads what it updates there only."""
    places = [load.indices for load in loads_of(stage.value, stage.buffer)]
    return len(places) == 1 and all(
        tvm_ffi.structural_equal(index, stored)
        and (index.same_as(axis.var) or (axis.extent == 1 and constant(index) == 0))
        for index, stored, axis in zip(places[0], stage.indices, stage.spatial, strict=True)
    )


def _outcome(reduction: Stage, tail: Stage | None) -> tuple[tvm.ir.Var, tuple[tvm.ir.Expr, ...], tvm.ir.Expr] | None:
    """What becomes of a result, as `stored[indices] = value` in the reduction's axes."""
    if tail is None:
        return reduction.buffer, reduction.indices, tirx.BufferLoad(reduction.buffer, list(reduction.indices))
    places = [load.indices for load in loads_of(tail.value, reduction.buffer)]
    if not places or not all(
        tvm_ffi.structural_equal(a, b) for place in places for a, b in zip(place, places[0], strict=True)
    ):
        return None
    extents = {axis.var: axis.extent for axis in tail.spatial}
    values: dict[tvm.ir.Var, tvm.ir.Expr] = {}
    for index, axis in zip(places[0], reduction.spatial, strict=True):
        if isinstance(index, tvm.ir.Var) and index not in values and extents.get(index) == axis.extent:
            values[index] = axis.var
        elif axis.extent != 1 or constant(index) != 0:
            return None
    if any(axis.var not in values and axis.extent != 1 for axis in tail.spatial):
        return None  # the tail repeats the result
    if not values.get(tail.spatial[-1].var, reduction.spatial[-1].var).same_as(reduction.spatial[-1].var):
        return None  # the tail is not contiguous where the reduction is
    for axis in tail.spatial:
        values.setdefault(axis.var, number(0))
    return tail.buffer, tuple(substitute(i, values) for i in tail.indices), substitute(tail.value, values)


def _without_padding(stage: Stage) -> list[tvm.ir.Expr] | None:
    """The update without the choice of padding, then the conditions under which a tap is none.

    None where padding would change the result: in a sum it must be 0, in a maximum or minimum what that starts as.
    """
    update = stage.value
    if not isinstance(update, tirx.Add | tirx.Max | tirx.Min):
        return None
    ours = [isinstance(side, tvm.ir.TensorLoad) and side.source.same_as(stage.buffer) for side in (update.a, update.b)]
    if sum(ours) != 1:
        return None
    accumulated, term = (update.a, update.b) if ours[0] else (update.b, update.a)
    neutral = tirx.const(0, str(stage.buffer.dtype)) if isinstance(update, tirx.Add) else stage.init
    conditions: list[tvm.ir.Expr] = []
    term = _unguarded(term, neutral, conditions)
    return None if term is None or chooses(term) else [type(update)(accumulated, term), *conditions]


def _unguarded(term: tvm.ir.Expr, neutral: tvm.ir.Expr, conditions: list[tvm.ir.Expr]) -> tvm.ir.Expr | None:
    """The term where its conditions hold; None if it is not `neutral` where they do not."""
    if is_choice(term):
        condition, inside, outside = term.args
        if constant(outside) is None or constant(outside) != constant(neutral):
            return None
        conditions.extend(_conjuncts(condition))
        return _unguarded(inside, neutral, conditions)
    if constant(neutral) == 0 and isinstance(term, tirx.Mul):
        a, b = (_unguarded(side, neutral, conditions) for side in (term.a, term.b))
        return None if a is None or b is None else tirx.Mul(a, b)
    if constant(neutral) == 0 and isinstance(term, tirx.Cast):
        value = _unguarded(term.value, neutral, conditions)
        return None if value is None else tirx.Cast(str(term.ty.dtype), value)
    return term


def _conjuncts(condition: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]


def _slides(stage: Stage, update: tvm.ir.Expr) -> tuple[Slide, ...] | None:
    """How the window moves over the input along each axis, the last one last; None where it does not, or otherwise."""
    *outer, channels = stage.spatial
    windows = [axis for axis in stage.reduction if axis.extent > 1]
    moved = {axis.var for axis in outer}
    moving = _moving(stage, update, windows)
    if not moving or not all(tvm_ffi.structural_equal(moving[0], load) for load in moving):
        return None
    *indices, last = moving[0].indices
    across = Slide(channels, None, 0, 1) if _follows(last, channels) else _slide(last, [channels], windows)
    if across is None or (across.taps and across.stride != 1):
        return None
    found = [across]
    for index in indices:
        if constant(index) is None:
            slide = _slide(index, outer, windows)
            if slide is None:
                return None
            found.append(slide)
    positions = [slide.axis.var for slide in found]
    taps = [slide.taps.var for slide in found if slide.taps]
    if len(set(positions)) != len(positions) or len(set(taps)) != len(taps) or len(taps) != len(windows):
        return None
    still = [Slide(axis, None, 0, 1) for axis in outer if axis.var not in positions]
    ordered = {slide.axis.var: slide for slide in (*found, *still)}
    alone = (slide for slide in found[1:] if slide.axis.var not in moved)
    return (*alone, *(ordered[axis.var] for axis in outer), across)


def _moving(stage: Stage, update: tvm.ir.Expr, windows: Sequence[Axis]) -> list[tvm.ir.TensorLoad]:
    """What the window slides over; where it has but one tap, everything that has a place for each result.

    Weights may have axes of the output, but have their taps apart from them.
    """
    sliding, placed = [], []
    for load in loads(update):
        slides = [slide for index in load.indices if (slide := _slide(index, stage.spatial, windows))]
        if not load.source.same_as(stage.buffer):
            sliding += [load] if any(slide.taps and slide.stride for slide in slides) else []
            placed += [load] if any(slide.axis in stage.spatial[:-1] for slide in slides) else []
    return sliding or ([] if windows else placed)


def _slide(index: tvm.ir.Expr, outer: Sequence[Axis], windows: Sequence[Axis]) -> Slide | None:
    """An index as position × stride + tap × dilation; where there is but one position, its axis may be missing."""
    sum_ = sum_over(index, (*outer, *windows))
    if sum_ is None or not sum_.steps or min(sum_.steps.values()) < 1:
        return None
    positions = [axis for axis in outer if axis.var in sum_.steps]
    taps = [axis for axis in windows if axis.var in sum_.steps]
    if len(positions) > 1 or len(taps) > 1:
        return None
    axis = positions[0] if positions else Axis(tvm.ir.Var("position", "int64"), 1)
    stride = sum_.steps.get(axis.var, 0)
    return Slide(axis, taps[0], stride, sum_.steps[taps[0].var]) if taps else Slide(axis, None, stride, 1)


def _follows(index: tvm.ir.Expr, channels: Axis) -> bool:
    """Whether an index is the channel, or the group of channels that it belongs to."""
    if isinstance(index, tirx.FloorDiv) and constant(index.b) is not None:
        index = index.a
    elif isinstance(index, tirx.Add) and isinstance(index.a, tirx.FloorDiv) and constant(index.b) == 0:
        return _follows(index.a, channels)
    sum_ = sum_over(index, [channels])
    return sum_ is not None and (sum_.steps == {channels.var: 1} or channels.extent == 1)


def _narrowed(slides: tuple[Slide, ...], condition: tvm.ir.Expr) -> tuple[Slide, ...] | None:
    """The slides with one more bound on which taps count; None where the condition is no such bound."""
    if isinstance(condition, tirx.LT | tirx.LE):
        smaller, larger = condition.a, condition.b
    elif isinstance(condition, tirx.GT | tirx.GE):
        smaller, larger = condition.b, condition.a
    else:
        return None
    axes = [axis for slide in slides for axis in (slide.axis, slide.taps) if axis]
    sum_ = sum_over(smaller - larger, axes)
    if sum_ is None:
        return None
    # Both forms as Σ + above <= 0.
    above = sum_.constant + (not isinstance(condition, tirx.LE | tirx.GE))
    for i, slide in enumerate(slides):
        position = Linear({slide.axis.var: slide.stride} if slide.stride else {}, 0, ())
        taken = position + Linear({slide.taps.var: slide.dilation} if slide.taps else {}, 0, ())
        if sum_.steps == taken.steps:
            bounds = [1 - above, *([slide.highest] if slide.highest is not None else [])]
            return (*slides[:i], dataclasses.replace(slide, highest=min(bounds)), *slides[i + 1 :])
        if sum_.steps == (taken * -1).steps:
            bounds = [above, *([slide.lowest] if slide.lowest is not None else [])]
            return (*slides[:i], dataclasses.replace(slide, lowest=max(bounds)), *slides[i + 1 :])
    return None
