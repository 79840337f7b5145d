"""Where the lines, bars and labels of a report's charts go: plain numbers in pixels, for the template to draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tvmbridge.report import Point, Share

COLOURED = 7  # kernels with a colour of their own in the bars; the others share one


@dataclasses.dataclass(frozen=True)
class Tick:
    """A label and where it stands on its axis, pixels."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True)
class StepChart:
    """A falling line over trials. left, top, right, bottom: the box of the axes; path: the line, as SVG writes it."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    path: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a bar. colour: 0 to COLOURED, the last for all others. percent: of the bar's own length."""

    x: float
    width: float
    colour: int
    name: str
    time_us: float
    percent: float


@dataclasses.dataclass(frozen=True)
class ShareBars:
    """Two bars on one scale: the time before tuning and after. names: the legend, a colour each."""

    width: float
    before: tuple[Segment, ...]
    after: tuple[Segment, ...]
    names: tuple[str, ...]


def draw_steps(
    points: Sequence[Point], trials: int, show: Callable[[float], str], *, width: float, height: float, labels: int = 4
) -> StepChart:
    """Draw best times over all `trials`, from zero up, so that lengths compare; needs at least one point.

    show: writes a time in microseconds. labels: of each axis, about so many.
    """
    left, top, right, bottom = 64.0, 8.0, width - 12.0, height - 24.0
    y_steps = _round_steps(points[0].time_us, labels)
    x_steps = [step for step in _round_steps(float(trials), labels) if step == int(step) and step <= trials]
    highest = y_steps[-1]

    def x(trial: float) -> float:
        return left + (right - left) * trial / trials

    def y(time_us: float) -> float:
        return bottom - (bottom - top) * time_us / highest

    first, *others = points
    path = [f"M{x(first.trial - 1):.1f} {y(first.time_us):.1f}"]
    path += [f"H{x(point.trial):.1f}V{y(point.time_us):.1f}" for point in others]
    path.append(f"H{x(trials):.1f}")
    return StepChart(
        width=width,
        height=height,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        path="".join(path),
        x_ticks=tuple(Tick(x(step), f"{step:.0f}") for step in x_steps),
        y_ticks=tuple(Tick(y(step), show(step) if step else "0") for step in y_steps),
    )


def draw_shares(shares: Sequence[Share], *, width: float) -> ShareBars:
    """Draw what each kernel takes of the network's time before and after, the longer bar as wide as there is room."""
    ranked = sorted(shares, key=lambda share: share.before_us, reverse=True)
    named, others = ranked[:COLOURED], ranked[COLOURED:]
    names = [share.name for share in named] + ([f"{len(others)} more"] if others else [])
    before = [share.before_us for share in named] + ([sum(share.before_us for share in others)] if others else [])
    after = [share.after_us for share in named] + ([sum(share.after_us for share in others)] if others else [])
    scale = width / max(sum(before), sum(after), 1e-9)
    return ShareBars(width, _stack(names, before, scale), _stack(names, after, scale), tuple(names))


def _stack(names: Sequence[str], times_us: Sequence[float], scale: float) -> tuple[Segment, ...]:
    segments, x = [], 0.0
    for colour, (name, time_us) in enumerate(zip(names, times_us, strict=True)):
        percent = 100 * time_us / sum(times_us)
        segments.append(Segment(x, time_us * scale, colour, name, time_us, percent))
        x += time_us * scale
    return tuple(segments)


def _round_steps(highest: float, count: int) -> list[float]:
    """0 and multiples of 1, 2 or 5 times a power of ten, up to the first that is not below the highest value."""
    rough = highest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(highest / step - 1e-9) + 1)]
