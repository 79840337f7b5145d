"""Tunes a model's kernels for one target: search, measure, log, until the budget is spent; then the final check."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence

from tvmbridge.device.tracker import why_not_rpc
from tvmbridge.errors import TuningError, TvmBridgeError
from tvmbridge.frontend import ImportedModel
from tvmbridge.host import detect_host
from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.targets import RpcMeasure, Target, why_not_local
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.engines.opening import engine_tasks, open_engine
from tvmbridge.tuning.final_check import FinalCheck, is_due, run_final_check
from tvmbridge.tuning.log import TuningLog
from tvmbridge.tuning.measure import Measurer
from tvmbridge.tuning.measure.opening import open_measurer
from tvmbridge.tuning.progress import Progress, TuneProgress

_BATCH = 16  # trials for each device that measures: what a crash may lose
_FINALISTS = 3  # of each kernel go into the final check
_CHECK_SECONDS = 12.0  # of timing in it
_CHECK_SHARE = 0.15  # of the minutes that the final check of all finalists may take; else fewer take part
_BUILD_S_PER_KERNEL = 0.25  # rough: how long a kernel takes to compile into a network


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """How a run goes about it.

    also: further logs, read only: their records of the same kernels and target count as measured, and the cost model
    learns from all of them. A folder stands for the logs in it.
    engine: of `engines.opening.ENGINES`: "templates" searches the configs of tvmbridge's own schedule templates,
    "metaschedule" the spaces of TVM's MetaSchedule.
    cluster: address of a dask scheduler whose workers compile the candidates; None: this machine does.
    final_check: whether the finalists are timed in the network at the end, which a target measured here can.
    """

    also: Sequence[str | os.PathLike[str]] = ()
    engine: str = "templates"
    cluster: str | None = None
    final_check: bool = True


def why_not_tuned(target: Target) -> str | None:
    """Why this machine cannot measure candidates for the target; None if it can."""
    if isinstance(target.measure, RpcMeasure):
        return why_not_rpc(target)
    if target.measure == "none":
        return "the target is measured nowhere (measure: none)"
    return why_not_local(target, detect_host(gpus=target.kind == "cuda"))


def tune(
    model: ImportedModel,
    target: Target,
    *,
    budget: Budget,
    log: str | os.PathLike[str],
    seed: int = 0,
    options: TuneOptions = TuneOptions(),
    lowered: LoweredModel | None = None,
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> TuneProgress:
    """Measure configs of the model's kernels and append every trial to the log; check the best in the whole network.

    What the logs already hold for this target is not measured again, and counts in `budget.trials`. Interrupted at any
    moment, the run loses at most the batch in flight; called again, it goes on. lowered: the model lowered for the
    target, where the caller has it. Returns where it ended, and why. TuningError where the target cannot be measured;
    LogError where a log cannot be used.
    """
    if obstacle := why_not_tuned(target):
        raise TuningError(f"{target.name} cannot be tuned here: {obstacle}")
    lowered = lowered or lower(model, target)
    with TuningLog.open(log, also=options.also) as records:
        progress = _begin(lowered, target, budget, records, options, on_progress)
        # Over RPC the kernels of a network cannot be timed one by one.
        checks = options.final_check and not isinstance(target.measure, RpcMeasure)
        finalists, reserve_s = _plan_check(budget, len(progress.tasks)) if checks else (0, 0.0)
        ended = _search(progress, records, target, budget, reserve_s, seed, options)
        check: FinalCheck | None = None
        problem: str | None = None
        if checks and (budget.minutes is None or budget.minutes > 0) and is_due(progress.tasks, records, target):
            progress.report(stage="check")
            try:
                seconds = _CHECK_SECONDS if budget.minutes is None else min(_CHECK_SECONDS, budget.minutes * 60 * 0.1)
                check = run_final_check(
                    model, lowered, target, progress.tasks, finalists=finalists, seconds=seconds, seed=seed
                )
            except TvmBridgeError as exc:  # what was measured is in the log, and counts without the check
                problem = exc.message
            else:
                records.append(check.records)
        return progress.end(ended, check, problem)


def search_kernels(
    lowered: LoweredModel,
    target: Target,
    *,
    budget: Budget,
    log: str | os.PathLike[str],
    seed: int = 0,
    options: TuneOptions = TuneOptions(),
    on_progress: Callable[[TuneProgress], None] | None = None,
) -> TuneProgress:
    """`tune` without the final check, for kernels that belong to no model that could run."""
    if obstacle := why_not_tuned(target):
        raise TuningError(f"{target.name} cannot be tuned here: {obstacle}")
    with TuningLog.open(log, also=options.also) as records:
        progress = _begin(lowered, target, budget, records, options, on_progress)
        return progress.end(_search(progress, records, target, budget, 0.0, seed, options))


def _begin(
    lowered: LoweredModel,
    target: Target,
    budget: Budget,
    records: TuningLog,
    options: TuneOptions,
    on_progress: Callable[[TuneProgress], None] | None,
) -> Progress:
    tasks = engine_tasks(options.engine, lowered, target, records)
    elsewhere = {id(record) for task in tasks for record in records.from_elsewhere(task.kernel.key, target.key)}
    known_elsewhere = sum(id(record) in elsewhere for task in tasks for _, record in task.trials)
    return Progress(target, budget, tasks, known_elsewhere, on_progress)


def _search(
    progress: Progress,
    records: TuningLog,
    target: Target,
    budget: Budget,
    reserve_s: float,
    seed: int,
    options: TuneOptions,
) -> str:
    """Measure until something ends it, and say what. reserve_s: of the minutes are left for the final check."""
    tasks = progress.tasks
    if not tasks:
        return "no kernel has a choice of configs"
    by_kernel = {task.kernel.key: task for task in tasks}
    engine = open_engine(options.engine, tasks, target, records, seed)
    measurer: Measurer | None = None
    with contextlib.ExitStack() as stack:
        while True:
            ended, limit = _allowance(budget, progress, reserve_s, measurer.devices if measurer is not None else 1)
            if ended is not None:
                return ended
            batch = engine.next_batch(limit)
            if not batch:
                return "converged"
            if measurer is None:  # not before there is something to measure: starting takes seconds
                kernels = [task.kernel for task in tasks]
                measurer = stack.enter_context(open_measurer(kernels, target, seed, cluster=options.cluster))
            measured = measurer.measure([(each, by_kernel[each.kernel.key].best_us) for each in batch])
            records.append(measured)
            engine.learn(batch, measured)
            progress.count(measured)


def _allowance(budget: Budget, progress: Progress, reserve_s: float, devices: int) -> tuple[str | None, int]:
    """Why there is nothing left to spend, or None; and how many trials the next batch may have."""
    limit = _BATCH * devices
    if budget.minutes is not None:
        left_s = budget.minutes * 60 - reserve_s - progress.elapsed_s
        if left_s <= 0:
            return f"{budget.minutes:g} min spent", 0
        if progress.seconds_per_trial is not None:
            limit = min(limit, max(1, int(left_s / progress.seconds_per_trial)))
    if budget.trials is not None:
        limit = min(limit, budget.trials - progress.known - progress.trials)
        if limit <= 0:
            return f"{budget.trials} trials spent", 0
    return None, limit


def _plan_check(budget: Budget, kernels: int) -> tuple[int, float]:
    """How many finalists of each kernel the budget allows, and the seconds to leave for the final check."""
    build_s = 2.0 + kernels * _BUILD_S_PER_KERNEL
    if budget.minutes is None:
        return _FINALISTS, 0.0
    needs_s = {finalists: (finalists + 2) * build_s + _CHECK_SECONDS for finalists in range(1, _FINALISTS + 1)}
    affordable = [finalists for finalists, needed in needs_s.items() if needed <= _CHECK_SHARE * budget.minutes * 60]
    finalists = max(affordable, default=1)
    return finalists, min(needs_s[finalists], 0.5 * budget.minutes * 60)
