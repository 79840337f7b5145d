"""What the CUDA code is meant to reach on a GPU, and whether the rows reach it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from comparison.figures import COMPILED, EAGER, OURS, TITLES, TUNED, geometric_mean
from comparison.goals import Goal
from comparison.gpu_figures import LIMITS, OUR_PROGRAMS, GpuRow
from comparison.gpu_plan import Precision

UNTUNED_RATIO = 2.0
TUNED_RATIO = 1.0


def judge_gpu(
    rows: Sequence[GpuRow], networks: Sequence[str], precisions: Sequence[Precision], *, comparable: bool = True
) -> list[Goal]:
    """Every goal, by precision.

    networks: all that there are; a goal over all of them is met by all alone. comparable: whether times are those of a
    GPU, ours and the peers'; no goal of speed is judged by others.
    """
    goals = []
    for precision in precisions:
        counted = [row for row in rows if row.case.precision == precision]
        missing = set(networks) - {row.case.network for row in counted if row.verified}
        goals.append(_accuracy_goal(counted, precision, bool(missing)))
        speed = [_untuned_goal(counted, precision, set(networks)), _tuned_goal(counted, precision, set(networks))]
        goals += speed if comparable else [dataclasses.replace(goal, met=None) for goal in speed]
    return goals


def _accuracy_goal(rows: Sequence[GpuRow], precision: Precision, incomplete: bool) -> Goal:
    errors = [row.errors[program] for row in rows for program in OUR_PROGRAMS if program in row.errors]
    wrong = any(row.problem for row in rows) or any(error > LIMITS[precision] for error in errors)
    met = None if not rows else False if wrong else None if incomplete else True
    found = f"{max(errors):.1e}" if errors else None
    return Goal(f"largest error, {precision}", f"≤ {LIMITS[precision]:g}", found, met)


def _untuned_goal(rows: Sequence[GpuRow], precision: Precision, networks: set[str]) -> Goal:
    ratios = [(ratio.median, row.case) for row in rows if (ratio := row.ratio(OURS, EAGER)) is not None]
    name, wanted = f"highest untuned ratio to eager PyTorch, {precision}", f"≤ {UNTUNED_RATIO:g}"
    if not ratios:
        return Goal(name, wanted, None, None)
    worst, case = max(ratios, key=lambda pair: pair[0])
    missing = networks - {case.network for _, case in ratios}
    met = False if worst > UNTUNED_RATIO else None if missing else True
    return Goal(name, wanted, f"{worst:.2f} ({case.network}, batch {case.batch})", met)


def _tuned_goal(rows: Sequence[GpuRow], precision: Precision, networks: set[str]) -> Goal:
    ones = [row for row in rows if row.case.batch == 1]
    ratios = {row.case.network: ratio.median for row in ones if (ratio := row.ratio(TUNED, COMPILED)) is not None}
    name = f"geometric mean of the tuned ratios to {TITLES[COMPILED]}, batch 1, {precision}"
    wanted = f"≤ {TUNED_RATIO:g}"
    if not ratios:
        return Goal(name, wanted, None, None)
    mean = geometric_mean(ratios.values())
    met = None if networks - set(ratios) else mean <= TUNED_RATIO
    return Goal(name, wanted, f"{mean:.3f} of {len(ratios)}", met)
