"""What tuning is meant to reach on a CPU, and whether the rows reach it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from comparison.figures import EXPRESS, OPENVINO, REFERENCE, TUNED, Row, geometric_mean
from comparison.goals import Goal
from comparison.tuning import Tuned

MEAN_RATIO = {REFERENCE: 0.8, OPENVINO: 0.85}
WORST_RATIO = 1.0
EXPRESS_RATIO = 1.1
TRIALS_PER_SECOND = 5.0
RATE_NETWORK = "resnet50"
RETUNE_SECONDS = 10.0


def judge_tuning(
    rows: Sequence[Row],
    steps: Mapping[str, Mapping[str, Tuned]],
    retuned: Mapping[str, float | None],
    networks: Sequence[str],
) -> list[Goal]:
    """Every goal. steps: by network and program; retuned: seconds by network; networks: all that a mean needs."""
    missing = set(networks) - {row.network for row in rows if row.rounds_us}
    goals = []
    for peer, wanted in MEAN_RATIO.items():
        ratios = [ratio.median for row in rows if (ratio := row.ratio(TUNED, peer)) is not None]
        found = geometric_mean(ratios) if ratios else None
        met = None if found is None or missing else found <= wanted
        name = f"geometric mean of the tuned ratios to {peer}"
        goals.append(Goal(name, f"≤ {wanted}", _show(found), met))
    worst = _worst(rows, lambda row: row.ratio(TUNED))
    goals.append(_limit("highest tuned ratio to onnxruntime", worst, WORST_RATIO, bool(missing)))
    express = _worst(rows, lambda row: row.ratio(EXPRESS, TUNED))
    goals.append(_limit("express over tuned, the worst", express, EXPRESS_RATIO, bool(missing)))
    step = steps.get(RATE_NETWORK, {}).get(TUNED)
    rate = step.trials_per_second if step is not None and step.trials else None
    met = None if rate is None else rate >= TRIALS_PER_SECOND
    goals.append(Goal(f"trials a second on {RATE_NETWORK}", f"≥ {TRIALS_PER_SECOND:g}", _show(rate), met))
    known = [(seconds, network) for network, seconds in retuned.items() if seconds is not None]
    goals.append(_limit("tuning again with the log, seconds", max(known, default=None), RETUNE_SECONDS, bool(missing)))
    return goals


def _worst(rows: Sequence[Row], ratio_of: Callable[[Row], object]) -> tuple[float, str] | None:
    ratios = [(ratio.median, row.network) for row in rows if (ratio := ratio_of(row)) is not None]  # type: ignore[attr-defined]
    return max(ratios, default=None)


def _limit(name: str, worst: tuple[float, str] | None, wanted: float, incomplete: bool) -> Goal:
    """A goal that is missed by one network, and met by all."""
    if worst is None:
        return Goal(name, f"≤ {wanted:g}", None, None)
    met = False if worst[0] > wanted else None if incomplete else True
    return Goal(name, f"≤ {wanted:g}", f"{worst[0]:.2f} ({worst[1]})", met)


def _show(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
