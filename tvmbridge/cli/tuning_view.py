"""How a tuning run looks while it works: lines that say how it stands, and a table of the kernels that cost most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tvmbridge.cli.output import show_us

if TYPE_CHECKING:
    from tvmbridge.tuning.progress import KernelGain, TuneProgress

_KERNELS = 8
_NAME_WIDTH = 16  # of a kernel's name, at least
_GAP = 2
_WIN = 1.05  # a gain that is worth a colour


@dataclasses.dataclass(frozen=True)
class _Column:
    """title, and what it shows of a kernel. rank: where the width does not do for all, the highest goes first."""

    title: str
    show: Callable[[KernelGain], str]
    rank: int


_COLUMNS = (
    _Column("calls", lambda gain: str(gain.calls), 6),
    _Column("trials", lambda gain: f"{gain.trials}/{'–' if gain.configs is None else gain.configs}", 3),
    _Column("untuned", lambda gain: show_us(gain.untuned_us), 4),
    _Column("best", lambda gain: show_us(gain.best_us), 1),
    _Column("GFLOP/s", lambda gain: f"{gain.gflops:.3g}" if gain.gflops else "–", 5),
    _Column("gain", lambda gain: f"{_gain(gain):.2f}×" if _gain(gain) else "–", 2),
)


def say_network(progress: TuneProgress) -> str:
    """The network's time as the sum of its kernels', each alone: "kernels 8 ms → 5 ms (1.60×)"."""
    gain = f" ({progress.untuned_us / progress.best_us:.2f}×)" if progress.best_us else ""
    kernels = "emulated kernels" if progress.emulated else "kernels"
    return f"{kernels} {show_us(progress.untuned_us)} → {show_us(progress.best_us)}{gain}"


def say_trials(progress: TuneProgress) -> str:
    """What was measured: "64 trials (5.1 a second), 3 failed, 96 more in the log"."""
    rate = f" ({progress.trials / progress.elapsed_s:.1f} a second)" if progress.trials and progress.elapsed_s else ""
    failed = f", {progress.failed} failed" if progress.failed else ""
    known = f", {progress.known} more in the log" if progress.known else ""
    return f"{progress.trials} trials{rate}{failed}{known}"


def say_check(progress: TuneProgress) -> str:
    """What the final check found of the whole network: "; network 9 ms → 6 ms (1.50×)"; nothing without one."""
    if progress.check is None:
        return f"; no final check: {progress.problem}" if progress.problem is not None else ""
    untuned_us, tuned_us = progress.check.untuned_us, progress.check.tuned_us
    return f"; network {show_us(untuned_us)} → {show_us(tuned_us)} ({untuned_us / tuned_us:.2f}×)"


def say_left(progress: TuneProgress, waited_s: float = 0.0) -> str:
    """How long it may still take, as far as the budget says: ", at most 2 min 5 s left".

    waited_s: how long ago the progress was told.
    """
    budget, estimates = progress.budget, []
    if budget.minutes is not None:
        estimates.append(budget.minutes * 60 - progress.elapsed_s)
    if budget.trials is not None and progress.trials:
        left = budget.trials - progress.known - progress.trials
        estimates.append(left * progress.elapsed_s / progress.trials)
    return f", at most {show_seconds(max(0.0, min(estimates) - waited_s))} left" if estimates else ""


def show_seconds(seconds: float) -> str:
    """A stretch of time for people: 9 s, 2 min 5 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def table_kernels(progress: TuneProgress, width: int, height: int) -> Table:
    """The kernels that cost the network most now, the first the most, in at most that many characters and lines."""
    ranked = sorted(progress.kernels, key=_cost_us, reverse=True)
    shown = ranked[: max(0, min(_KERNELS, height - 2))]  # the titles, and the line about the others
    cells = {column: [column.title, *map(column.show, shown)] for column in _COLUMNS}
    widths = {column: max(map(len, texts)) + _GAP for column, texts in cells.items()}
    for column in sorted(_COLUMNS, key=lambda column: -column.rank):
        if sum(widths.values()) + _NAME_WIDTH > width:
            del widths[column]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_header=bool(shown))
    names = max([len("kernel"), *(len(gain.name) for gain in shown)])
    table.add_column(
        "kernel", no_wrap=True, overflow="ellipsis", max_width=max(1, min(names, width - sum(widths.values())))
    )
    for column in widths:
        table.add_column(column.title, no_wrap=True, justify="right")
    for gain in shown:
        style = "green" if _gain(gain) >= _WIN else ""
        table.add_row(Text(gain.name), *(Text(column.show(gain), style) for column in widths))
    if rest := ranked[len(shown) :]:
        table.add_row(Text(f"{len(rest)} more"), *("" for _ in widths), style="dim")
    return table


def _cost_us(gain: KernelGain) -> float:
    """Of all its calls in one run of the network, as far as it is known."""
    return (gain.best_us or gain.untuned_us or 0.0) * gain.calls


def _gain(gain: KernelGain) -> float:
    """How many times as fast as untuned; 0 where it is not known."""
    return gain.untuned_us / gain.best_us if gain.untuned_us and gain.best_us else 0.0
