"""Which candidates to measure next: the kernel with the most time still to win, its most promising configs first."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tvmbridge.tuning.cost_model import CostModel
from tvmbridge.tuning.tasks import Candidate, Task

BATCH = 16
_EXPLORE = 0.25  # of a batch is drawn at random: the model knows only what it has seen
_PATIENCE = 3  # batches without a gain, after which a kernel counts as converged
_GAIN = 0.99  # a time below this share of the best is a gain; less is noise


def next_batch(tasks: Sequence[Task], model: CostModel, generator: random.Random, limit: int) -> list[Candidate]:
    """At most `limit` candidates to measure now; none when every task has converged or is exhausted.

    First the untuned choice of every kernel, so that every gain has something to be measured against; then a batch for
    the kernel where the most time is still expected to be won.
    """
    opening = [task.untuned for task in tasks if task.untuned.key in {c.key for c in task.untried}]
    if opening:
        return opening[: min(limit, BATCH)]
    open_tasks = [task for task in tasks if task.untried and task.batches_since_better < _PATIENCE]
    if not open_tasks:
        return []
    task = max(open_tasks, key=_time_to_win_us)
    size = min(limit, BATCH, len(task.untried))
    scores = model.predict(task.untried)
    if scores is None:
        return generator.sample(task.untried, size)
    ranked = [task.untried[index] for index in (-scores).argsort(kind="stable")]
    promising = ranked[: size - int(size * _EXPLORE)]
    return promising + generator.sample(ranked[len(promising) :], size - len(promising))


def note_progress(task: Task, best_before_us: float | None) -> None:
    """After a batch: count how long the kernel has gone without a gain."""
    best_us = task.best_us
    gained = best_us is not None and (best_before_us is None or best_us < best_before_us * _GAIN)
    task.batches_since_better = 0 if gained else task.batches_since_better + 1


def _time_to_win_us(task: Task) -> float:
    """The kernel's share of the network's time, halved for each batch that brought nothing."""
    return (task.best_us or 0.0) * task.kernel.calls / 2**task.batches_since_better
