"""Tunes a model's kernels for one target: search, measure, log, until the budget is spent or nothing more is won."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Callable

from tvmbridge.errors import TuningError
from tvmbridge.frontend import ImportedModel
from tvmbridge.host import detect_host
from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.targets import RpcMeasure, Target, why_not_local
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.cost_model import CostModel
from tvmbridge.tuning.log import TuningLog
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.search import next_batch, note_progress
from tvmbridge.tuning.tasks import Task, find_tasks


@dataclasses.dataclass(frozen=True)
class KernelGain:
    """One kernel's result: median times of one call, microseconds; None where nothing was measured.

    kernel: its key. name: in the lowered model. calls: of it in one run of the network. configs: that it has to choose
    from, all templates together. trials: measured so far, those known from logs too. flops: arithmetic of one call;
    None where that depends on the data.
    """

    kernel: str
    name: str
    calls: int
    configs: int
    trials: int
    flops: float | None
    untuned_us: float | None
    best_us: float | None

    @property
    def gflops(self) -> float | None:
        """The best rate so far, 1e9 operations a second."""
        return self.flops / self.best_us / 1e3 if self.flops is not None and self.best_us else None


@dataclasses.dataclass(frozen=True)
class TuneProgress:
    """Where a run stands: after every batch, and once at the end.

    trials: measured by this run. known: found in the log at the start. failed: of this run's trials.
    untuned_us, best_us: the sum over the tuned kernels of time × calls.
    """

    target: str
    trials: int
    known: int
    failed: int
    elapsed_s: float
    budget: Budget
    untuned_us: float
    best_us: float
    kernels: tuple[KernelGain, ...]
    ended: str | None = None


def tune(
    model: ImportedModel,
    target: Target,
    *,
    budget: Budget,
    log: str | os.PathLike[str],
    seed: int = 0,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> TuneProgress:
    """Measure configs of the model's kernels on this machine and append every trial to the log.

    What the log already holds for this target is not measured again, and counts in `budget.trials`. Interrupted at any
    moment, the run loses at most the batch in flight; called again, it goes on. Returns where it ended, and why.
    TuningError where the target is not measured on this machine; LogError where the log cannot be used.
    """
    return tune_lowered(lower(model, target), target, budget=budget, log=log, seed=seed, on_progress=on_progress)


def why_not_tuned(target: Target) -> str | None:
    """Why this machine cannot measure candidates for the target; None if it can."""
    if target.kind == "cuda":
        return "CUDA kernels have no configs to choose from yet"
    if isinstance(target.measure, RpcMeasure):
        return "measuring over RPC is not available yet"
    if target.measure == "none":
        return "the target is measured nowhere (measure: none)"
    return why_not_local(target, detect_host())


def tune_lowered(
    lowered: LoweredModel,
    target: Target,
    *,
    budget: Budget,
    log: str | os.PathLike[str],
    seed: int = 0,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> TuneProgress:
    """`tune` for a model that is lowered for the target already."""
    if obstacle := why_not_tuned(target):
        raise TuningError(f"{target.name} cannot be tuned here: {obstacle}")
    started = time.monotonic()
    with TuningLog.open(log) as records:
        tasks = find_tasks(lowered, target, records)
        known = sum(len(task.trials) for task in tasks)
        counts = {"trials": 0, "failed": 0}

        def report(ended: str | None = None) -> TuneProgress:
            elapsed_s = time.monotonic() - started
            progress = _progress(target, tasks, known, counts["trials"], counts["failed"], elapsed_s, budget, ended)
            if on_progress is not None:
                on_progress(progress)
            return progress

        if not tasks:
            return report("no kernel has a choice of configs")
        generator, cost_model = random.Random(seed), CostModel(seed)
        with LocalMeasurer([task.kernel for task in tasks], target, seed) as measurer:
            while True:
                if budget.minutes is not None and time.monotonic() - started >= budget.minutes * 60:
                    return report(f"{budget.minutes:g} min spent")
                limit = 1 << 30 if budget.trials is None else budget.trials - known - counts["trials"]
                if limit <= 0:
                    return report(f"{budget.trials} trials spent")
                cost_model.train(tasks)
                batch = next_batch(tasks, cost_model, generator, limit)
                if not batch:
                    return report("converged")
                best_us = {task.kernel.key: task.best_us for task in tasks}
                measured = measurer.measure([(candidate, best_us[candidate.kernel.key]) for candidate in batch])
                records.append(measured)
                by_kernel = {task.kernel.key: task for task in tasks}
                for candidate, record in zip(batch, measured, strict=True):
                    by_kernel[candidate.kernel.key].add(candidate, record)
                for key in {candidate.kernel.key for candidate in batch}:
                    note_progress(by_kernel[key], best_us[key])
                counts["trials"] += len(measured)
                counts["failed"] += sum(record.error is not None for record in measured)
                report()


def _progress(
    target: Target,
    tasks: list[Task],
    known: int,
    trials: int,
    failed: int,
    elapsed_s: float,
    budget: Budget,
    ended: str | None,
) -> TuneProgress:
    gains = tuple(
        KernelGain(
            kernel=task.kernel.key,
            name=task.kernel.name,
            calls=task.kernel.calls,
            configs=len(task.trials) + len(task.untried),
            trials=len(task.trials),
            flops=task.flops,
            untuned_us=task.untuned_us,
            best_us=task.best_us,
        )
        for task in tasks
    )
    compared = [gain for gain in gains if gain.untuned_us is not None and gain.best_us is not None]
    return TuneProgress(
        target=target.name,
        trials=trials,
        known=known,
        failed=failed,
        elapsed_s=elapsed_s,
        budget=budget,
        untuned_us=sum((gain.untuned_us or 0.0) * gain.calls for gain in compared),
        best_us=sum((gain.best_us or 0.0) * gain.calls for gain in compared),
        kernels=gains,
        ended=ended,
    )
