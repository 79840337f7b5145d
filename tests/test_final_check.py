"""The final check: what wins in the network is kept, what does not is dropped, and its records decide a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from kernels import runnable_targets
from onnx_models import mlp

import tvmbridge
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.errors import TuningError
from tvmbridge.lowering import lower
from tvmbridge.tuning import final_check
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.final_check import FinalCheck, is_due, run_final_check
from tvmbridge.tuning.log import read_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate, Task, find_tasks
from tvmbridge.tuning.tune import TuneOptions, tune

pytestmark = pytest.mark.compiler

NATIVE = runnable_targets()[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tvmbridge.ImportedModel:
    path = tmp_path_factory.mktemp("model") / "mlp.onnx"
    onnx.save(mlp(), path)
    return tvmbridge.import_onnx(path)


def record(candidate: Candidate, time_us: float, when: str = "2026-01-01T00:00:00Z") -> TrialRecord:
    return TrialRecord(
        kernel=candidate.kernel.key,
        target=NATIVE.key,
        template=candidate.template.name,
        template_version=candidate.template.version,
        config=candidate.config,
        times_us=(time_us,),
        error=None,
        tvm="0",
        seed=0,
        when=when,
    )


def measured_tasks(model: tvmbridge.ImportedModel, trials: int = 4) -> list[Task]:
    """Every kernel with the first few candidates "measured"; each is said to be quicker than the one before it."""
    tasks = find_tasks(lower(model, NATIVE), NATIVE, LogRecords())
    for task in tasks:
        others = [candidate for candidate in task.untried.values() if candidate.key != task.untuned.key]
        for time_us, candidate in enumerate([task.untuned, *others[: trials - 1]]):
            task.add(candidate, record(candidate, 100.0 - time_us))
    return tasks


def play(monkeypatch: pytest.MonkeyPatch, kernel_us: dict[str, float], network_us: tuple[float, float]) -> None:
    """Let choices take what is said of them, in the order in which they are built: choice0 is the untuned one."""

    def answer(self: Any, request: dict[str, Any]) -> dict[str, Any]:
        if not request["each_kernel"]:
            return {name: [time] * 5 for name, time in zip(request["variants"], network_us, strict=False)}
        symbols = {plan.symbol for _, plans in self._built.values() for plan in plans}
        return {name: {symbol: [kernel_us[name]] * 5 for symbol in symbols} for name in request["variants"]}

    monkeypatch.setattr(final_check._Stand, "_in_a_process", answer)


def check(model: tvmbridge.ImportedModel, tasks: list[Task], finalists: int = 2) -> FinalCheck:
    lowered = lower(model, NATIVE)
    return run_final_check(model, lowered, NATIVE, tasks, finalists=finalists, seconds=1.0, seed=0)


def test_the_network_decides_and_not_the_kernel_alone(model, monkeypatch):
    tasks = measured_tasks(model)
    play(monkeypatch, {"choice0": 50.0, "choice1": 60.0, "choice2": 40.0}, (500.0, 400.0))
    found = check(model, tasks)
    assert (found.untuned_us, found.tuned_us, found.dropped) == (500.0, 400.0, ())
    assert all(each.final for each in found.records)
    for task in tasks:
        second = task.ranking()[1]
        best = LogRecords([*(r for _, r in task.trials), *found.records]).best(task.kernel.key, NATIVE.key)
        assert best is not None and best.config == second.config
        assert best.median_us == 40.0 / task.kernel.calls


@pytest.mark.parametrize("network_us", [(500.0, 480.0), (500.0, 505.0)])
def test_a_kernel_that_does_not_win_is_dropped(model, monkeypatch, network_us):
    tasks = measured_tasks(model)
    play(monkeypatch, {"choice0": 50.0, "choice1": 50.0, "choice2": 60.0}, network_us)
    found = check(model, tasks)
    assert set(found.dropped) == {task.kernel.name for task in tasks}
    records = LogRecords([*(r for task in tasks for _, r in task.trials), *found.records])
    for task in tasks:
        plan = plan_kernel(task.kernel, NATIVE, records)
        assert (plan.template.name, plan.config) == (task.untuned.template.name, task.untuned.config)


@pytest.mark.parametrize(
    ("times_us", "wins"),
    [
        ([49.0, 48.9, 49.1, 49.0, 99.0, 49.0, 49.0, 49.0], True),  # one round was disturbed, which is no argument
        ([49.0, 51.0, 49.0, 51.0, 49.0, 49.0, 51.0, 49.0], False),  # the median is lower, and that may be luck
        ([49.0, 49.0, 49.0], False),  # too few rounds to know
    ],
)
def test_a_win_is_one_that_the_rounds_agree_on(times_us, wins):
    assert final_check._beats(times_us, [50.0] * len(times_us)) is wins


def test_a_kernel_that_the_network_did_not_call_keeps_its_trials(model, monkeypatch):
    tasks = measured_tasks(model)
    play(monkeypatch, {"choice0": 50.0, "choice1": 40.0, "choice2": 60.0}, (500.0, 400.0))
    timed = final_check._Stand.time_kernels
    absent = tasks[0].kernel.key

    def without_one(*arguments: Any) -> list[dict[str, Any]]:
        return [{key: times for key, times in each.items() if key != absent} for each in timed(*arguments)]

    monkeypatch.setattr(final_check._Stand, "time_kernels", without_one)
    found = check(model, tasks)
    assert {each.kernel for each in found.records} == {task.kernel.key for task in tasks[1:]}


def test_where_the_kernels_win_and_the_network_loses_nothing_has_won(model, monkeypatch):
    tasks = measured_tasks(model)
    play(monkeypatch, {"choice0": 50.0, "choice1": 30.0, "choice2": 60.0}, (500.0, 510.0))
    found = check(model, tasks)
    assert found.tuned_us == found.untuned_us == 500.0
    assert set(found.dropped) == {task.kernel.name for task in tasks}
    assert [each.config for each in found.records] == [task.untuned.config for task in tasks]


def test_a_network_that_fails_is_an_error_that_says_how(model, monkeypatch):
    tasks = measured_tasks(model)
    monkeypatch.setattr(final_check, "child_command", lambda *_: ["sh", "-c", "echo nothing works; exit 3"])
    with pytest.raises(TuningError, match="status 3: nothing works"):
        check(model, tasks)


def test_a_check_is_due_for_what_was_measured_since_the_last_one(model):
    tasks = measured_tasks(model)
    assert is_due(tasks, LogRecords(), NATIVE)
    assert not is_due([], LogRecords(), NATIVE)
    finals = [
        TrialRecord(**{**record_fields(record(task.untuned, 5.0, "2026-01-01T00:01:00Z")), "final": True})
        for task in tasks
    ]
    assert not is_due(tasks, LogRecords(finals), NATIVE)
    assert is_due(tasks, LogRecords(finals[1:]), NATIVE)
    later = next(iter(tasks[0].untried.values()))
    tasks[0].add(later, record(later, 1.0, "2026-01-01T00:02:00Z"))
    assert is_due(tasks, LogRecords(finals), NATIVE)


def record_fields(of: TrialRecord) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__struct_fields__}


@pytest.mark.slow
def test_a_tuned_network_is_checked_once_and_built_from_what_won(model, tmp_path: Path):
    log = tmp_path / "m.tune.jsonl"
    first = tune(model, NATIVE, budget=Budget(trials=30), log=log)
    assert first.problem is None and first.check is not None
    assert 0 < first.check.tuned_us <= first.check.untuned_us
    records = read_log(log)
    assert sum(each.final for each in records) == len(first.check.records) >= len(first.kernels)
    again = tune(model, NATIVE, budget=Budget(trials=30), log=log)
    assert (again.trials, again.check) == (0, None)
    report = tvmbridge.build(model, [NATIVE], tmp_path / "m.tvmb", log=log, tune=False)
    (outcome,) = report.outcomes
    assert all(plan.record is not None and plan.record.final for plan in outcome.kernels)
    unchecked = tune(model, NATIVE, budget=Budget(trials=34), log=log, options=TuneOptions(final_check=False))
    assert unchecked.trials == 4 and unchecked.check is None
    with tvmbridge.load(tmp_path / "m.tvmb") as session:
        (spec,) = session.inputs
        assert session.run({spec.name: np.zeros(spec.shape, np.float32)})
