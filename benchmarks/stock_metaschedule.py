"""Trials a second: TVM's MetaSchedule as shipped beside ours, on the same kernels, in one run.

    python benchmarks/stock_metaschedule.py --network resnet50 --tasks 4 --trials 64 --json stock.json

Three ways spend the same number of trials on the kernels of a network that have the most arithmetic: `stock`
(`tvm.s_tir.meta_schedule.tune.tune_tasks` with its own builder and runner), `metaschedule` (the same search spaces, our
engine and measuring worker) and `templates` (our schedule templates). Loading the compiler, and the 16 s for which TVM
declares tensor instructions, are left out of all three. On a busy machine stock's builds take over 30 s and all fail;
`--build-timeout 300` lets it go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import tvm
from tvm.s_tir import meta_schedule as ms

import networks
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import Kernel, LoweredModel, lower
from tvmbridge.lowering.counts import count_flops
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target, parse_preset
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine, metaschedule_tasks
from tvmbridge.tuning.log import read_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tune import search_kernels

SEED = 0
_FAILED_S = 1e9


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one way made of its trials. best_us: the lowest median time of each kernel, by its key."""

    seconds: float
    trials: int
    failed: int
    best_us: dict[str, float]

    @property
    def trials_per_s(self) -> float:
        """Failed trials count: they took their time too."""
        return self.trials / self.seconds


def heaviest_kernels(lowered: LoweredModel, count: int) -> LoweredModel:
    """The model's module, with only those kernels that have the most arithmetic in one run of the network."""
    ranked = sorted(lowered.kernels, key=lambda kernel: -(count_flops(kernel.function) or 0) * kernel.calls)
    return LoweredModel(lowered.module, tuple(ranked[:count]))


def run_stock(lowered: LoweredModel, target: Target, trials: int, build_timeout_s: float) -> Spent:
    """TVM's own tuning, with everything at its default but the number of trials a task and the time-out of a build."""
    import tvm.s_tir.tensor_intrin  # noqa: F401 -- its 16 s are no part of the comparison

    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    names = {kernel.name: kernel for kernel in lowered.kernels}
    started = time.monotonic()
    extracted = ms.relax_integration.extract_tasks(lowered.module, tvm_target(target), {})
    chosen = [task for task in extracted if task.task_name in names]
    with tempfile.TemporaryDirectory() as folder:
        tasks, weights = ms.relax_integration.extracted_tasks_to_tune_contexts(chosen, folder, seed=SEED + 1)
        database = ms.tune.tune_tasks(
            tasks=tasks,
            task_weights=weights,
            work_dir=folder,
            max_trials_global=trials,
            max_trials_per_task=trials // len(tasks),
            builder=ms.builder.LocalBuilder(max_workers=tasks[0].num_threads, timeout_sec=build_timeout_s),
        )
        seconds = time.monotonic() - started
        times: dict[str, list[float | None]] = {}
        for task in chosen:
            kept = database.commit_workload(task.dispatched[0])
            records = [r for r in database.get_all_tuning_records() if r.workload.same_as(kept)]
            times[names[task.task_name].key] = [_median_us(record.run_secs) for record in records]
    return _spent(seconds, times)


def _median_us(run_secs: Sequence[Any]) -> float | None:
    ordered = sorted(float(seconds) for seconds in run_secs)
    return ordered[len(ordered) // 2] * 1e6 if ordered and ordered[0] < _FAILED_S else None


def _spent(seconds: float, times: dict[str, list[float | None]]) -> Spent:
    measured = {key: [time_us for time_us in found if time_us is not None] for key, found in times.items()}
    trials = sum(map(len, times.values()))
    failed = trials - sum(map(len, measured.values()))
    return Spent(seconds, trials, failed, {key: min(found) for key, found in measured.items() if found})


def run_metaschedule(lowered: LoweredModel, target: Target, trials: int) -> Spent:
    """Our engine with MetaSchedule's spaces, one kernel after the other as `run_stock`."""
    started = time.monotonic()
    records: list[TrialRecord] = []
    share = trials // len(lowered.kernels)
    with LocalMeasurer(lowered.kernels, target, SEED) as measurer:
        for task in metaschedule_tasks(lowered, target, LogRecords()):
            engine, spent = MetaScheduleEngine([task], target, SEED), 0
            while spent < share and (batch := engine.next_batch(share - spent)):
                measured = measurer.measure([(candidate, task.best_us) for candidate in batch])
                engine.learn(batch, measured)
                records += measured
                spent += len(batch)
    return _from_records(time.monotonic() - started, lowered.kernels, records)


def run_templates(lowered: LoweredModel, target: Target, trials: int) -> Spent:
    """What `tvmbridge tune` does."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "templates.tune.jsonl")
        started = time.monotonic()
        search_kernels(lowered, target, budget=Budget(trials=trials), log=log, seed=SEED)
        return _from_records(time.monotonic() - started, lowered.kernels, list(read_log(log)))


def _from_records(seconds: float, kernels: Sequence[Kernel], records: Sequence[TrialRecord]) -> Spent:
    times = {kernel.key: [record.median_us for record in records if record.kernel == kernel.key] for kernel in kernels}
    return _spent(seconds, times)


def main() -> None:
    """Run the three ways one after the other and print what each made of its trials."""
    parser = argparse.ArgumentParser(description="Trials a second of stock MetaSchedule and of tvmbridge.")
    parser.add_argument("--network", choices=networks.NETWORKS, default="resnet50")
    parser.add_argument("--tasks", type=int, default=4, help="kernels to tune")
    parser.add_argument("--trials", type=int, default=64, help="of each way, all kernels together")
    parser.add_argument(
        "--build-timeout", type=float, default=30.0, help="seconds for stock to build one trial; TVM's default is 30"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    target = parse_preset("native")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        onnx.save(networks.make_network(arguments.network), path)
        lowered = heaviest_kernels(lower(import_onnx(str(path)), target), arguments.tasks)
    ways: dict[str, Callable[[], Spent]] = {
        "templates": lambda: run_templates(lowered, target, arguments.trials),
        "metaschedule": lambda: run_metaschedule(lowered, target, arguments.trials),
        "stock": lambda: run_stock(lowered, target, arguments.trials, arguments.build_timeout),
    }
    found: dict[str, Spent] = {}
    for name, run in ways.items():
        found[name] = spent = run()
        print(f"{name:13} {spent.trials} trials, {spent.failed} failed, {spent.trials_per_s:.2f} trials/s", flush=True)
    ratios = {name: spent.trials_per_s / found["stock"].trials_per_s for name, spent in found.items()}
    for kernel in lowered.kernels:
        best = (f"{name} {spent.best_us.get(kernel.key, math.nan):.0f} us" for name, spent in found.items())
        print(kernel.key, *best)
    print("of stock's trials/s:", ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items()))
    if arguments.json:
        figures = {name: {**dataclasses.asdict(s), "trials_per_s": s.trials_per_s} for name, s in found.items()}
        described = {"network": arguments.network, "target": target.key, "tvm": tvm.__version__}
        arguments.json.write_text(json.dumps({**described, "ways": figures, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
