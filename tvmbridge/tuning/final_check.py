"""The last word on what search has found: the finalists against the untuned choice, in the network itself.

A kernel alone, called over and over, finds its data where the network's caches would not have it. So the network
is built once with every kernel's untuned choice, once with every best one, once with every second best …; all take
turns to run, every kernel is timed where it stands, and one that does not beat its untuned choice there is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tvmbridge.bundle import BuiltVariant, ModelFacts, write_bundle
from tvmbridge.child import child_command, child_environment
from tvmbridge.codegen import KernelPlan, build_variant
from tvmbridge.errors import TuningError
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure.stopping import median_interval
from tvmbridge.tuning.record import TrialRecord, now_utc
from tvmbridge.tuning.tasks import Candidate, Task
from tvmbridge.verify.inputs import random_samples, write_arrays

_TIMEOUT_S = 600.0


@dataclasses.dataclass(frozen=True)
class FinalCheck:
    """What came of the finalists.

    records: one for the untuned choice of each kernel, and for those of its finalists that beat it; all `final`.
    untuned_us, tuned_us: median time of one call of the whole network, microseconds, taken in turns.
    dropped: names of the kernels where nothing beat the untuned choice.
    """

    records: tuple[TrialRecord, ...]
    untuned_us: float
    tuned_us: float
    dropped: tuple[str, ...]


def is_due(tasks: Sequence[Task], records: LogRecords, target: Target) -> bool:
    """Whether a kernel was measured since its last final check, or had none."""
    for task in _comparable(tasks):
        checked = max((record.when for record in records.finals(task.kernel.key, target.key)), default="")
        if any(record.when > checked for _, record in task.trials):
            return True
    return False


def run_final_check(
    model: ImportedModel,
    lowered: LoweredModel,
    target: Target,
    tasks: Sequence[Task],
    *,
    finalists: int,
    seconds: float,
    seed: int,
) -> FinalCheck:
    """Build, time and decide; about `seconds` of it is timing. TuningError where the network does not run."""
    tasks = _comparable(tasks)
    choices = [{task.kernel.key: task.untuned for task in tasks}]
    choices += [_choice(tasks, place) for place in range(finalists)]
    with tempfile.TemporaryDirectory(prefix="tvmbridge-final-") as name:
        stand = _Stand(model, lowered, target, tasks, Path(name), seed)
        kernels_us = stand.time_kernels(choices, seconds * 2 / 3)
        # A kernel of a branch that these inputs do not take has no times, and keeps its best trial.
        tasks = [task for task in tasks if all(task.kernel.key in timed for timed in kernels_us)]
        kernels = {task.kernel.key: _judge(task, choices, kernels_us) for task in tasks}
        winners = {key: verdict.winner for key, verdict in kernels.items()}
        untuned, tuned = stand.time_networks([choices[0], winners], seconds / 3)
    untuned_us, tuned_us = statistics.median(untuned), statistics.median(tuned)
    lost = statistics.median(_ratios(tuned, untuned)) > 1  # the kernels won and the network did not: nothing has
    when = now_utc()
    records, dropped = [], []
    for task in tasks:
        verdict = kernels[task.kernel.key]
        if lost or verdict.winner.key == task.untuned.key:
            dropped.append(task.kernel.name)
        for candidate, times_us in verdict.kept:
            if not lost or candidate.key == task.untuned.key:
                records.append(_final(task, candidate, times_us, seed, when))
    return FinalCheck(tuple(records), untuned_us, untuned_us if lost else tuned_us, tuple(dropped))


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """On one kernel. kept: the untuned choice and what beat it, with their times a call, one a round."""

    winner: Candidate
    kept: tuple[tuple[Candidate, tuple[float, ...]], ...]


class _Stand:
    """Builds one network with different choices, and runs them in turns in a process of their own."""

    def __init__(
        self,
        model: ImportedModel,
        lowered: LoweredModel,
        target: Target,
        tasks: Sequence[Task],
        folder: Path,
        seed: int,
    ) -> None:
        self._model, self._lowered, self._target, self._folder = model, lowered, target, folder
        self._records = {candidate.key: record for task in tasks for candidate, record in task.trials}
        self._built: dict[frozenset[tuple[str, str, int, str]], tuple[BuiltVariant, tuple[KernelPlan, ...]]] = {}
        (sample,) = random_samples(model.source, model.signature, seed=seed, count=1)
        write_arrays(
            folder / "inputs.npz", {f"i{i}": sample[spec.name] for i, spec in enumerate(model.signature.inputs)}
        )

    def time_kernels(
        self, choices: Sequence[Mapping[str, Candidate]], seconds: float
    ) -> list[dict[str, tuple[float, ...]]]:
        """For each choice, by kernel key: microseconds of one call in the network, one figure a round."""
        timed = self._run(choices, seconds, each_kernel=True)
        found = []
        for choice in choices:
            variant, plans = self._build(choice)
            by_symbol = timed[variant.target.name]
            found.append(
                {
                    plan.kernel.key: tuple(time_us / plan.kernel.calls for time_us in by_symbol[plan.symbol])
                    for plan in plans
                    if plan.symbol in by_symbol
                }
            )
        return found

    def time_networks(self, choices: Sequence[Mapping[str, Candidate]], seconds: float) -> list[list[float]]:
        """For each choice the time of one call of the network, microseconds, one figure a round."""
        timed = self._run(choices, seconds, each_kernel=False)
        return [timed[self._build(choice)[0].target.name] for choice in choices]

    def _run(self, choices: Sequence[Mapping[str, Candidate]], seconds: float, *, each_kernel: bool) -> dict[str, Any]:
        variants = {variant.target.name: variant for variant, _ in map(self._build, choices)}
        bundle = self._folder / "network.tvmb"
        facts = ModelFacts(self._model.name, self._model.sha256, self._model.opset)
        write_bundle(bundle, model=facts, signature=self._model.signature, variants=list(variants.values()))
        return self._in_a_process(
            {
                "bundle": str(bundle),
                "variants": list(variants),
                "inputs": str(self._folder / "inputs.npz"),
                "threads": self._target.cores,
                "seconds": seconds,
                "each_kernel": each_kernel,
            }
        )

    def _build(self, choice: Mapping[str, Candidate]) -> tuple[BuiltVariant, tuple[KernelPlan, ...]]:
        """The network with these candidates; the same choice is built once."""
        keys = frozenset(candidate.key for candidate in choice.values())
        if keys not in self._built:
            target = msgspec.structs.replace(self._target, name=f"choice{len(self._built)}")
            records = LogRecords(self._records[key] for key in keys if key in self._records)
            self._built[keys] = build_variant(self._lowered, target, records, self._folder)
        return self._built[keys]

    def _in_a_process(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = self._folder / "request.json"
        path.write_text(json.dumps(request))
        try:
            done = subprocess.run(
                child_command("tvmbridge.tuning.final_check_worker", str(path)),
                env=child_environment(TVMBRIDGE_CACHE=str(self._folder / "cache")),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise TuningError(f"the network did not finish its final check within {_TIMEOUT_S:g} s") from exc
        if done.returncode:
            ending = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
            raise TuningError(f"the network failed in its final check, with status {done.returncode}: {ending}")
        return json.loads(done.stdout)


def _comparable(tasks: Sequence[Task]) -> list[Task]:
    """The kernels whose untuned choice and at least one candidate work."""
    return [task for task in tasks if task.untuned_us is not None]


def _choice(tasks: Sequence[Task], place: int) -> dict[str, Candidate]:
    """Each kernel's candidate at this place of its ranking, the untuned one left out of that; else the untuned one."""
    choice = {}
    for task in tasks:
        finalists = [candidate for candidate in task.ranking() if candidate.key != task.untuned.key]
        choice[task.kernel.key] = finalists[place] if place < len(finalists) else task.untuned
    return choice


def _judge(task: Task, choices: Sequence[Mapping[str, Candidate]], kernels_us: Sequence[Mapping[str, Any]]) -> _Verdict:
    key = task.kernel.key
    timed = {choice[key].key: (choice[key], times[key]) for choice, times in zip(choices, kernels_us, strict=True)}
    untuned = timed.pop(task.untuned.key)
    better = [each for each in timed.values() if _beats(each[1], untuned[1])]
    winner, _ = min([untuned, *better], key=lambda pair: statistics.median(pair[1]))
    return _Verdict(winner, (untuned, *better))


def _beats(times_us: Sequence[float], untuned_us: Sequence[float]) -> bool:
    """Whether it is surely quicker: held against the untuned choice round by round, nine times in ten not by luck."""
    interval = median_interval(_ratios(times_us, untuned_us))
    return interval is not None and interval[1] < 1 and statistics.median(times_us) < statistics.median(untuned_us)


def _ratios(times_us: Sequence[float], untuned_us: Sequence[float]) -> list[float]:
    """By round: what disturbs the machine disturbs all who run in it."""
    return [time_us / other_us for time_us, other_us in zip(times_us, untuned_us, strict=True)]


def _final(task: Task, candidate: Candidate, times_us: tuple[float, ...], seed: int, when: str) -> TrialRecord:
    trial = next(record for known, record in task.trials if known.key == candidate.key)
    return msgspec.structs.replace(trial, times_us=times_us, error=None, seed=seed, when=when, final=True)
