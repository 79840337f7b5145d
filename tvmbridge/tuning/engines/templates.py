"""The templates' configs as an engine: the kernels with most time to win first, their most promising configs first."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from tvmbridge.tuning.cost_model import CostModel
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate, Task

_EXPLORE = 0.15  # of the candidates are drawn at random: the model knows only what it has seen
_HALVED_AFTER = 12  # trials without a gain halve what a kernel is still expected to win
_LEAST_TO_WIN = 0.1  # of a kernel's time, however near it is to the roofline: that is only an estimate
_CONVERGED = 5e-4  # of the network's time: where no kernel is expected to win more, the search is over


class TemplateEngine:
    """The `Engine` over the configs of all tasks, ranked by a cost model.

    earlier: trials of any kernels on the same target, to learn from before the first measurement. The same seed and
    the same measured times give the same decisions.
    """

    def __init__(self, tasks: Sequence[Task], seed: int, earlier: Iterable[TrialRecord] = ()) -> None:
        self._tasks = tasks
        self._random = random.Random(seed)
        self._model = CostModel(seed, earlier)
        for task in tasks:
            self._model.learn(record for _, record in task.trials)

    def next_batch(self, limit: int) -> list[Candidate]:
        """At most `limit` candidates to measure now; none when every task has converged or is exhausted.

        First the untuned choice of every kernel, so that every gain has something to be measured against. Then one
        candidate after the other for the kernel where the most time is expected to be won; each that it gets lowers
        what its next one can bring.
        """
        opening = [task.untuned for task in self._tasks if task.untuned.key in task.untried]
        if opening:
            return opening[:limit]
        self._model.train()
        line = _Roofline(self._tasks)
        whole_us = sum((task.best_us or 0.0) * task.kernel.calls for task in self._tasks)
        to_win = {task.kernel.key: line.to_win_us(task) for task in self._tasks if task.untried}
        ranked: dict[str, list[Candidate]] = {}
        batch: list[Candidate] = []
        by_key = {task.kernel.key: task for task in self._tasks}
        while to_win and len(batch) < limit:
            key = max(to_win, key=lambda key: to_win[key])
            if to_win[key] <= _CONVERGED * whole_us:
                break
            if key not in ranked:
                ranked[key] = self._rank(list(by_key[key].untried.values()))
            explore = self._random.random() < _EXPLORE
            batch.append(ranked[key].pop(self._random.randrange(len(ranked[key])) if explore else 0))
            to_win[key] /= 2 ** (1 / _HALVED_AFTER)
            if not ranked[key]:
                del to_win[key]
        return batch

    def learn(self, batch: Sequence[Candidate], records: Sequence[TrialRecord]) -> None:
        """Take in what measuring a batch gave, one record a candidate, in order: into the tasks, too."""
        by_key = {task.kernel.key: task for task in self._tasks}
        for candidate, record in zip(batch, records, strict=True):
            by_key[candidate.kernel.key].add(candidate, record)
        self._model.learn(records)

    def _rank(self, candidates: list[Candidate]) -> list[Candidate]:
        """The most promising first; in random order before anything was learnt."""
        self._random.shuffle(candidates)
        scores = self._model.predict(candidates)
        return candidates if scores is None else [candidates[index] for index in (-scores).argsort(kind="stable")]


def trials_to_converge(share: float) -> int:
    """How many trials a kernel of this share of the network's time gets where none of them brings a gain."""
    return max(0, math.ceil(_HALVED_AFTER * math.log2(share / _CONVERGED))) if share > 0 else 0


class _Roofline:
    """The highest rates that any of these kernels has reached: an estimate of what the others can still win."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        measured = [task for task in tasks if task.best_us]
        self._gflops = max((task.flops / task.best_us for task in measured if task.flops and task.best_us), default=0.0)
        self._gbytes = max((task.size_bytes / task.best_us for task in measured if task.best_us), default=0.0)

    def to_win_us(self, task: Task) -> float:
        """What more trials may take off the network's time; a kernel of which nothing works yet comes first."""
        if task.best_us is None:
            return math.inf if len(task.trials) < _HALVED_AFTER else 0.0
        compute_us = task.flops / self._gflops if task.flops and self._gflops else 0.0
        memory_us = task.size_bytes / self._gbytes if self._gbytes else 0.0
        above_us = task.best_us - max(compute_us, memory_us)
        hope = 2 ** (-task.trials_since_better / _HALVED_AFTER)
        return task.kernel.calls * max(above_us, _LEAST_TO_WIN * task.best_us) * hope
