"""What a tuning log says of one model, as data: curves, gains, shares, failures. `render.py` makes a page of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from tvmbridge.codegen.plan import rank_records
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.schedules import Config
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Task, find_tasks

__all__ = ["Failures", "KernelReport", "Point", "Share", "TargetReport", "report_lowered", "report_target"]

_REASON_LENGTH = 200  # characters of a failure's reason


@dataclasses.dataclass(frozen=True)
class Point:
    """From this trial on, counted from 1, the best time is this, microseconds."""

    trial: int
    time_us: float


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """One kernel on one target. Times are medians of one call, microseconds; None where nothing was measured.

    kernel: its key. name: in the lowered model. configs: that it has to choose from. trials: of those, failed included.
    flops: arithmetic of one call; None where it depends on the data.
    untuned_us, best_us: of the kernel alone. checked_untuned_us, checked_best_us: in the network, in the final check.
    template, config: what a build takes; None where it takes the untuned choice for want of a record.
    curve: the best time alone over this kernel's trials; a point where it falls.
    """

    kernel: str
    name: str
    calls: int
    configs: int
    trials: int
    failed: int
    flops: float | None
    untuned_us: float | None
    best_us: float | None
    checked_untuned_us: float | None
    checked_best_us: float | None
    template: str | None
    config: Config | None
    curve: tuple[Point, ...]

    @property
    def gain(self) -> float | None:
        """How many times as fast alone as untuned."""
        return _ratio(self.untuned_us, self.best_us)

    @property
    def checked_gain(self) -> float | None:
        """How many times as fast in the network as untuned."""
        return _ratio(self.checked_untuned_us, self.checked_best_us)

    @property
    def gflops(self) -> float | None:
        """The best rate alone, 1e9 operations a second."""
        return self.flops / self.best_us / 1e3 if self.flops is not None and self.best_us else None


@dataclasses.dataclass(frozen=True)
class Share:
    """One kernel's time in one run of the network, all calls together, microseconds."""

    name: str
    before_us: float
    after_us: float


@dataclasses.dataclass(frozen=True)
class Failures:
    """How many trials failed for one reason."""

    reason: str
    count: int


@dataclasses.dataclass(frozen=True)
class TargetReport:
    """What the logs know of one model on one target.

    key: of the target, as records name it. fixed: kernels with nothing to choose. kernels: the others, the most
    expensive first.
    curve: the sum over the kernels of best time × calls, over all trials in the order of their measurement; a kernel
    counts as untuned before its first success, and not at all where there is none. trials: all of them.
    forgotten: trials of these kernels whose template or config this tvmbridge does not have any more.
    shares: of the kernels that both times are known of; checked: whether those are the final check's, in the network.
    checked_when: when the last final check was; None where there was none.
    first_when, last_when: of the trials, UTC; None where there are none. tvm: versions that compiled them.
    emulated: whether all of this was measured under emulation.
    """

    name: str
    key: str
    fixed: int
    kernels: tuple[KernelReport, ...]
    curve: tuple[Point, ...]
    trials: int
    forgotten: int
    failures: tuple[Failures, ...]
    shares: tuple[Share, ...]
    checked: bool
    checked_when: str | None
    first_when: str | None
    last_when: str | None
    tvm: tuple[str, ...]
    emulated: bool = False

    @property
    def failed(self) -> int:
        """How many of the trials failed."""
        return sum(failures.count for failures in self.failures)

    @property
    def before_us(self) -> float:
        """The sum of the shares before tuning, microseconds."""
        return sum(share.before_us for share in self.shares)

    @property
    def after_us(self) -> float:
        """The sum of the shares after tuning, microseconds."""
        return sum(share.after_us for share in self.shares)


def report_target(model: ImportedModel, target: Target, records: LogRecords) -> TargetReport:
    """Gather what the records say of the model's kernels on the target. Measures nothing."""
    return report_lowered(lower(model, target), target, records)


def report_lowered(lowered: LoweredModel, target: Target, records: LogRecords) -> TargetReport:
    """`report_target` for a model that is lowered for the target already."""
    tasks = find_tasks(lowered, target, records)
    kernels = sorted((_report_kernel(task, target, records) for task in tasks), key=_cost_us, reverse=True)
    trials = sorted((record for task in tasks for _, record in task.trials), key=lambda record: record.when)
    known = sum(len(records.measured(task.kernel.key, target.key)) for task in tasks)
    checks = [record.when for task in tasks for record in records.finals(task.kernel.key, target.key)]
    shares, checked = _share_time(kernels)
    return TargetReport(
        name=target.name,
        key=target.key,
        fixed=len(lowered.kernels) - len(tasks),
        kernels=tuple(kernels),
        curve=_sum_curve(tasks, trials),
        trials=len(trials),
        forgotten=known - len(trials),
        failures=_count_failures(trials),
        shares=shares,
        checked=checked,
        checked_when=max(checks, default=None),
        first_when=trials[0].when if trials else None,
        last_when=trials[-1].when if trials else None,
        tvm=tuple(sorted({record.tvm for record in trials})),
        emulated=target.emulated,
    )


def _report_kernel(task: Task, target: Target, records: LogRecords) -> KernelReport:
    kernel = task.kernel
    ranked = rank_records(kernel, target, records)
    checked = {
        (record.template, record.template_version, record.config_key): record.median_us
        for record in records.finals(kernel.key, target.key)
    }
    template, record = ranked[0] if ranked else (None, None)
    return KernelReport(
        kernel=kernel.key,
        name=kernel.name,
        calls=kernel.calls,
        configs=len({candidate.key for candidate, _ in task.trials}) + len(task.untried),
        trials=len(task.trials),
        failed=sum(record.error is not None for _, record in task.trials),
        flops=task.flops,
        untuned_us=task.untuned_us,
        best_us=task.best_us,
        checked_untuned_us=checked.get(task.untuned.key[1:]),
        checked_best_us=record.median_us if record is not None and record.final else None,
        template=template.name if template is not None else None,
        config=record.config if record is not None else None,
        curve=_falling((number, record.median_us) for number, (_, record) in enumerate(task.trials, 1)),
    )


def _sum_curve(tasks: Sequence[Task], trials: Sequence[TrialRecord]) -> tuple[Point, ...]:
    calls = {task.kernel.key: task.kernel.calls for task in tasks}
    best_us = {}
    for task in tasks:
        first_us = next((record.median_us for _, record in task.trials if record.median_us is not None), None)
        if (start_us := task.untuned_us or first_us) is not None:
            best_us[task.kernel.key] = start_us
    sums = []
    for number, record in enumerate(trials, 1):
        if record.median_us is not None:
            best_us[record.kernel] = min(best_us[record.kernel], record.median_us)
        sums.append((number, sum(time_us * calls[key] for key, time_us in best_us.items())))
    return _falling(sums) if best_us else ()


def _falling(times: Iterable[tuple[int, float | None]]) -> tuple[Point, ...]:
    points: list[Point] = []
    for trial, time_us in times:
        if time_us is not None and (not points or time_us < points[-1].time_us):
            points.append(Point(trial, time_us))
    return tuple(points)


def _share_time(kernels: Sequence[KernelReport]) -> tuple[tuple[Share, ...], bool]:
    """Times in the network where all have them, else times alone: the two do not add up."""
    timed = [kernel for kernel in kernels if kernel.untuned_us is not None and kernel.best_us is not None]
    checked = bool(timed) and all(k.checked_untuned_us is not None and k.checked_best_us is not None for k in timed)
    shares = []
    for kernel in timed:
        before_us, after_us = kernel.untuned_us, kernel.best_us
        if checked:
            before_us, after_us = kernel.checked_untuned_us, kernel.checked_best_us
        shares.append(Share(kernel.name, (before_us or 0.0) * kernel.calls, (after_us or 0.0) * kernel.calls))
    return tuple(shares), checked


def _count_failures(trials: Sequence[TrialRecord]) -> tuple[Failures, ...]:
    reasons = Counter(" ".join(record.error.split())[:_REASON_LENGTH] for record in trials if record.error is not None)
    return tuple(Failures(reason, count) for reason, count in reasons.most_common())


def _cost_us(kernel: KernelReport) -> float:
    return (kernel.untuned_us or kernel.best_us or 0.0) * kernel.calls


def _ratio(before_us: float | None, after_us: float | None) -> float | None:
    return before_us / after_us if before_us is not None and after_us else None
