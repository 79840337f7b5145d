"""What the untuned build is meant to reach on a CPU, and whether the rows reach it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from comparison.figures import OURS, Row, geometric_mean, show_threads

MEAN_RATIO = 0.95
WORST_RATIO = 1.2
BUILD_SECONDS = 15.0
BUILD_NETWORKS = ("resnet50", "bert4")
BUILD_MEMORY_BYTES = 3_000_000_000
SPEED_UP = 1.8
SPEED_UP_NETWORK = "resnet50"
MAX_RELATIVE = 1e-4


@dataclasses.dataclass(frozen=True)
class Goal:
    """One thing to reach. found: None where it was not measured; met: None where the rows are too few to say."""

    name: str
    wanted: str
    found: str | None
    met: bool | None


def judge(rows: Sequence[Row], cases: Mapping[str, Sequence[int]]) -> list[Goal]:
    """Every goal, judged by `rows`. cases: the batches of all networks there are; a mean needs all of them."""
    goals = [_mean_goal(rows, threads, cases) for threads in sorted({row.threads for row in rows})]
    goals.append(_worst_goal(rows))
    goals += [_build_goal(rows, network) for network in BUILD_NETWORKS]
    goals += [_memory_goal(rows), _speed_up_goal(rows), _accuracy_goal(rows)]
    return goals


def _mean_goal(rows: Sequence[Row], threads: int, cases: Mapping[str, Sequence[int]]) -> Goal:
    counted = [row for row in rows if row.threads == threads]
    ratios = [ratio.median for row in counted if (ratio := row.ratio(OURS)) is not None]
    name = f"geometric mean of the ratios to ONNX Runtime, {show_threads(threads)}"
    wanted = f"≤ {MEAN_RATIO}"
    if not ratios:
        return Goal(name, wanted, None, None)
    wanted_rows = {(network, batch) for network, batches in cases.items() for batch in batches}
    missing = wanted_rows - {(row.network, row.batch) for row in counted}
    mean = geometric_mean(ratios)
    met = mean <= MEAN_RATIO and len(ratios) == len(counted)
    return Goal(name, wanted, f"{mean:.3f} over {len(ratios)} of {len(wanted_rows)} rows", None if missing else met)


def _worst_goal(rows: Sequence[Row]) -> Goal:
    ratios = [(ratio.median, row) for row in rows if (ratio := row.ratio(OURS)) is not None]
    name, wanted = "highest ratio to ONNX Runtime", f"≤ {WORST_RATIO}"
    if not ratios:
        return Goal(name, wanted, None, None)
    worst, row = max(ratios, key=lambda pair: pair[0])
    met = worst <= WORST_RATIO and len(ratios) == len(rows)
    return Goal(name, wanted, f"{worst:.2f} ({row.label}, {show_threads(row.threads)})", met)


def _build_goal(rows: Sequence[Row], network: str) -> Goal:
    seconds = [row.build_seconds for row in rows if (row.network, row.batch) == (network, 1) and row.build_seconds]
    found = max(seconds) if seconds else None
    return Goal(
        f"build of {network}, seconds",
        f"≤ {BUILD_SECONDS:g}",
        None if found is None else f"{found:.1f}",
        None if found is None else found <= BUILD_SECONDS,
    )


def _memory_goal(rows: Sequence[Row]) -> Goal:
    sizes = [(row.build_memory_bytes, row) for row in rows if row.build_memory_bytes]
    name, wanted = "memory of the largest build, GB", f"≤ {BUILD_MEMORY_BYTES / 1e9:g}"
    if not sizes:
        return Goal(name, wanted, None, None)
    largest, row = max(sizes, key=lambda pair: pair[0])
    return Goal(name, wanted, f"{largest / 1e9:.2f} ({row.label})", largest <= BUILD_MEMORY_BYTES)


def _speed_up_goal(rows: Sequence[Row]) -> Goal:
    times = {row.threads: row.median_us(OURS) for row in rows if (row.network, row.batch) == (SPEED_UP_NETWORK, 1)}
    one, two = times.get(1), times.get(2)
    name, wanted = f"speed-up of {SPEED_UP_NETWORK} by the second thread", f"≥ {SPEED_UP}"
    if one is None or two is None:
        return Goal(name, wanted, None, None)
    return Goal(name, wanted, f"{one / two:.2f}", one / two >= SPEED_UP)


def _accuracy_goal(rows: Sequence[Row]) -> Goal:
    errors = [row.max_relative for row in rows if row.max_relative is not None]
    found = f"{max(errors):.1e}" if errors else None
    met = None if not rows else all(row.problem is None for row in rows) and max(errors, default=0) <= MAX_RELATIVE
    return Goal("largest error relative to ONNX Runtime's outputs", f"≤ {MAX_RELATIVE:g}", found, met)
