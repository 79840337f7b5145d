"""What there is to tune: each distinct kernel with its templates' configs, and what has been measured of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import tvm

from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.lowering.counts import count_bytes, count_flops
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord, render_config

_GAIN = 0.99  # a time below this share of the best is a gain; less is noise


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to schedule one kernel: what a trial measures."""

    kernel: Kernel
    template: Template
    config: Config

    @functools.cached_property
    def key(self) -> tuple[str, str, int, str]:
        """Equal for candidates that make the same code."""
        return self.kernel.key, self.template.name, self.template.version, render_config(self.config)

    def record(
        self, target: Target, times_us: Iterable[float], error: str | None, *, seed: int, when: str
    ) -> TrialRecord:
        """What a trial of it on the target came to."""
        return TrialRecord(
            kernel=self.kernel.key,
            target=target.key,
            template=self.template.name,
            template_version=self.template.version,
            config=self.config,
            times_us=tuple(times_us),
            error=error,
            tvm=tvm.__version__,
            seed=seed,
            when=when,
            emulated=target.emulated,
        )


class Task:
    """One kernel's search: `untried` shrinks, `trials` grows, in the order in which they were measured.

    untuned: what a build without a log would take. untried: by `Candidate.key`. trials_since_better: how many have
    brought no gain since the last that did. configs: that there are to choose from; None where nobody counts them.
    """

    def __init__(self, kernel: Kernel, untuned: Candidate, candidates: Iterable[Candidate]) -> None:
        self.kernel = kernel
        self.untuned = untuned
        self.untried = {candidate.key: candidate for candidate in [untuned, *candidates]}
        self.trials: list[tuple[Candidate, TrialRecord]] = []
        self.best_us: float | None = None
        self.trials_since_better = 0
        self.configs: int | None = len(self.untried)

    @functools.cached_property
    def flops(self) -> float | None:
        """Arithmetic of one call; None where how much it is depends on the data."""
        return count_flops(self.kernel.function)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Of what one call reads of its inputs and of its outputs, each element once."""
        return count_bytes(self.kernel.function)

    @property
    def templates(self) -> tuple[str, ...]:
        """The names of the templates whose configs these are."""
        everything = [*self.untried.values(), *(candidate for candidate, _ in self.trials)]
        return tuple(sorted({candidate.template.name for candidate in everything}))

    @property
    def untuned_us(self) -> float | None:
        """The median time of the untuned choice, microseconds; None where it was not measured or failed."""
        return next((r.median_us for c, r in self.trials if c.key == self.untuned.key), None)

    def ranking(self) -> list[Candidate]:
        """The candidates that worked, the fastest first."""
        worked = [(record.median_us, candidate) for candidate, record in self.trials if record.median_us is not None]
        return [candidate for _, candidate in sorted(worked, key=lambda pair: (pair[0], pair[1].key))]

    def add(self, candidate: Candidate, record: TrialRecord) -> None:
        """Take in one trial's result."""
        self.trials.append((candidate, record))
        self.untried.pop(candidate.key, None)
        time_us, best_us = record.median_us, self.best_us
        gained = time_us is not None and (best_us is None or time_us < best_us * _GAIN)
        self.trials_since_better = 0 if gained else self.trials_since_better + 1
        if time_us is not None:
            self.best_us = time_us if best_us is None else min(best_us, time_us)


def find_tasks(lowered: LoweredModel, target: Target, records: LogRecords) -> list[Task]:
    """The kernels that have something to choose, with what the records already say of them on this target."""
    tasks = []
    for kernel in lowered.kernels:
        if not is_static(kernel):
            continue
        templates = fitting_templates(kernel, target)
        candidates = [Candidate(kernel, t, config) for t in templates for config in t.configs(kernel, target)]
        if len(candidates) < 2:
            continue
        untuned = Candidate(kernel, templates[0], templates[0].guess(kernel, target))
        task = Task(kernel, untuned, candidates)
        for record in records.measured(kernel.key, target.key):
            known = (kernel.key, record.template, record.template_version, render_config(record.config))
            if known in task.untried:
                task.add(task.untried[known], record)
        tasks.append(task)
    return tasks


def is_static(kernel: Kernel) -> bool:
    """Whether all extents are known: otherwise there is nothing definite to time."""
    return all(isinstance(axis, tvm.tirx.IntImm) for tensor in kernel.function.params for axis in tensor.shape)
