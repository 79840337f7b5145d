"""What a tuning run would have before it, told without measuring: its tasks, their shares and how long it may take."""

from __future__ import annotations

import dataclasses

from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import lower
from tvmbridge.targets import Target
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.engines.opening import engine_tasks
from tvmbridge.tuning.engines.templates import trials_to_converge
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.tasks import Task

# Round figures of a current core, to share out a network's time before anything was measured.
_CORE_GFLOPS, _GB_PER_S, _CALL_US = 50.0, 10.0, 1.0
_TRIAL_CORE_S = 0.45  # of one core, to compile and to time a candidate


@dataclasses.dataclass(frozen=True)
class TaskOutlook:
    """One kernel. templates: that have configs for it; configs: of all of them, None where the engine does not list
    them; known: trials found in logs.

    share: of the network's time; measured where all kernels are known, else estimated from their arithmetic and bytes.
    """

    kernel: str
    name: str
    calls: int
    templates: tuple[str, ...]
    configs: int | None
    known: int
    share: float


@dataclasses.dataclass(frozen=True)
class TuningOutlook:
    """A run that was not begun. trials, minutes: that it is expected to take within its budget."""

    target: str
    tasks: tuple[TaskOutlook, ...]
    measured_shares: bool
    trials: int
    minutes: float

    @property
    def configs(self) -> int:
        """Of all tasks."""
        return sum(task.configs or 0 for task in self.tasks)

    @property
    def known(self) -> int:
        """Trials that the logs already have."""
        return sum(task.known for task in self.tasks)


def foresee(
    model: ImportedModel, target: Target, records: LogRecords, budget: Budget | None, engine: str = "templates"
) -> TuningOutlook:
    """Tell what tuning would search. budget: None for as long as it brings something."""
    tasks = engine_tasks(engine, lower(model, target), target, records)
    measured = all(task.best_us is not None for task in tasks)
    times_us = [(task.best_us if measured else None) or _estimate_us(task, target) for task in tasks]
    whole_us = sum(time_us * task.kernel.calls for time_us, task in zip(times_us, tasks, strict=True)) or 1.0
    shares = [time_us * task.kernel.calls / whole_us for time_us, task in zip(times_us, tasks, strict=True)]
    trials = sum(
        min(
            len(task.untried) if task.configs is not None else 1 << 30,
            max(0, trials_to_converge(share) - task.trials_since_better),
        )
        for task, share in zip(tasks, shares, strict=True)
    )
    seconds_per_trial = _TRIAL_CORE_S / target.cores
    if budget is not None and budget.trials is not None:
        trials = min(trials, max(0, budget.trials - sum(len(task.trials) for task in tasks)))
    if budget is not None and budget.minutes is not None:
        trials = min(trials, int(budget.minutes * 60 / seconds_per_trial))
    described = (
        TaskOutlook(
            kernel=task.kernel.key,
            name=task.kernel.name,
            calls=task.kernel.calls,
            templates=task.templates,
            configs=task.configs,
            known=len(task.trials),
            share=share,
        )
        for task, share in zip(tasks, shares, strict=True)
    )
    ordered = tuple(sorted(described, key=lambda task: -task.share))
    return TuningOutlook(target.name, ordered, measured and bool(tasks), trials, trials * seconds_per_trial / 60)


def _estimate_us(task: Task, target: Target) -> float:
    compute_us = (task.flops or 0.0) / (_CORE_GFLOPS * target.cores * 1e3)
    return max(compute_us, task.size_bytes / (_GB_PER_S * 1e3)) + _CALL_US
