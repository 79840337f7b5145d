"""What there is to tune: each distinct kernel with its templates' configs, and what has been measured of them."""

from __future__ import annotations

import dataclasses
import functools

import tvm

from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.lowering.counts import count_flops
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord, render_config


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


@dataclasses.dataclass
class Task:
    """One kernel's search: `untried` shrinks, `trials` grows. `untuned` is what a build without a log would take."""

    kernel: Kernel
    untuned: Candidate
    untried: list[Candidate]
    trials: list[tuple[Candidate, TrialRecord]]
    batches_since_better: int = 0

    @functools.cached_property
    def flops(self) -> float | None:
        """Arithmetic of one call; None where how much it is depends on the data."""
        return count_flops(self.kernel.function)

    @property
    def best_us(self) -> float | None:
        """The lowest median time measured so far, microseconds; None before the first success."""
        return min((r.median_us for _, r in self.trials if r.median_us is not None), default=None)

    @property
    def untuned_us(self) -> float | None:
        """The median time of the untuned choice, microseconds; None where it was not measured or failed."""
        return next((r.median_us for c, r in self.trials if c.key == self.untuned.key), None)

    def add(self, candidate: Candidate, record: TrialRecord) -> None:
        """Take in one trial's result."""
        self.trials.append((candidate, record))
        self.untried = [other for other in self.untried if other.key != candidate.key]


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
        by_key = {candidate.key: candidate for candidate in [untuned, *candidates]}
        task = Task(kernel, untuned, list(by_key.values()), [])
        for record in records.measured(kernel.key, target.key):
            known = by_key.get((kernel.key, record.template, record.template_version, render_config(record.config)))
            if known is not None:
                task.add(known, record)
        tasks.append(task)
    return tasks


def is_static(kernel: Kernel) -> bool:
    """Whether all extents are known: otherwise there is nothing definite to time."""
    return all(isinstance(axis, tvm.tirx.IntImm) for tensor in kernel.function.params for axis in tensor.shape)
