"""Tuning: what is searched, what a budget spends, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from kernels import lower_expression, lower_function, random_array, run_lowered, runnable_targets, start_python
from processes import processes_below, wait_until_gone
from tvm import relax, te

from tvmbridge.cli import options
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.errors import LogError, TuningError
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.targets import Target, parse_preset
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.cost_model import CostModel
from tvmbridge.tuning.engines import opening
from tvmbridge.tuning.engines.templates import TemplateEngine
from tvmbridge.tuning.features import candidate_features
from tvmbridge.tuning.log import read_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.progress import TuneProgress
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate, Task, find_tasks
from tvmbridge.tuning.tune import search_kernels

pytestmark = pytest.mark.compiler

F32 = "float32"
NATIVE = runnable_targets()[0]
WEIGHTS = random_array(np.random.default_rng(0), (64, 64), F32)


def network() -> LoweredModel:
    """A matmul with its activation, and a softmax."""
    op = relax.op
    return lower_expression(
        lambda x: op.nn.softmax(op.nn.relu(op.matmul(x, relax.const(WEIGHTS, F32)))), [((24, 64), F32)], NATIVE
    )


def record(candidate: Candidate, *times_us: float, target: Target = NATIVE) -> TrialRecord:
    return TrialRecord(
        kernel=candidate.kernel.key,
        target=target.key,
        template=candidate.template.name,
        template_version=candidate.template.version,
        config=candidate.config,
        times_us=times_us,
        error=None if times_us else "did not work",
        tvm="0",
        seed=0,
        when="2026-01-01T00:00:00Z",
    )


def made_up_task(name: str, calls: int = 1, configs: int = 64) -> Task:
    """A task whose config is one number; nothing can be scheduled with it."""
    a = te.placeholder((8, 8), F32, "a")
    function = te.create_prim_func([a, te.compute((8, 8), lambda i, j: a[i, j] + 1, "b")])
    kernel = Kernel(name, function, name, frozenset(), calls)
    template = Template("made up", 1, 0, lambda *_: True, lambda *_: [], lambda *_: {}, lambda *_: None)  # type: ignore[arg-type]
    candidates = [Candidate(kernel, template, {"tile": tile}) for tile in range(configs)]
    return Task(kernel, candidates[configs // 2], candidates)


def play(search: TemplateEngine, batch: list[Candidate], time_us: Callable[[Config], float]) -> None:
    search.learn(batch, [record(candidate, time_us(candidate.config)) for candidate in batch])


def tile(candidate: Candidate) -> int:
    return int(candidate.config["tile"])


def test_the_command_line_offers_the_engines_that_there_are() -> None:
    assert options.ENGINES == opening.ENGINES


def test_the_untuned_choices_are_measured_first() -> None:
    tasks = [made_up_task(name) for name in "abc"]
    search = TemplateEngine(tasks, seed=0)
    assert [candidate.key for candidate in search.next_batch(100)] == [task.untuned.key for task in tasks]
    assert len(search.next_batch(2)) == 2


def test_the_kernel_with_the_most_time_to_win_comes_first() -> None:
    tasks = [made_up_task("quick", calls=1), made_up_task("slow but rare", calls=1), made_up_task("frequent", calls=50)]
    for task, time_us in zip(tasks, (1.0, 100.0, 10.0), strict=True):
        task.add(task.untuned, record(task.untuned, time_us))
    batch = TemplateEngine(tasks, seed=0).next_batch(16)
    kernels = [candidate.kernel.key for candidate in batch]
    assert kernels[0] == "frequent" and kernels.count("frequent") > kernels.count("slow but rare")
    assert "quick" not in kernels
    assert len({candidate.key for candidate in batch}) == 16


def test_a_kernel_at_the_roofline_waits_for_one_that_is_not() -> None:
    near, far = made_up_task("near"), made_up_task("far")
    near.add(near.untuned, record(near.untuned, 1.0))
    far.add(far.untuned, record(far.untuned, 8.0))  # the same work takes it eight times as long
    assert near.flops == far.flops and near.size_bytes == far.size_bytes
    batch = TemplateEngine([near, far], seed=0).next_batch(8)
    assert {candidate.kernel.key for candidate in batch} == {"far"}


def test_a_kernel_without_gains_converges_later_the_more_of_the_time_it_takes() -> None:
    large, small = made_up_task("large", calls=90, configs=500), made_up_task("small", calls=1, configs=500)
    search = TemplateEngine([large, small], seed=0)
    while batch := search.next_batch(16):
        play(search, batch, lambda _: 5.0)
    assert large.untried and small.untried
    assert len(large.trials) > 2 * len(small.trials) > 2


def test_a_gain_keeps_the_search_going() -> None:
    task, stuck = made_up_task("gaining", configs=400), made_up_task("stuck", configs=400)
    for each, time_us in ((task, lambda config: 1000.0 / (1 + int(config["tile"]))), (stuck, lambda _: 5.0)):
        search = TemplateEngine([each], seed=0)
        while batch := search.next_batch(16):
            play(search, batch, time_us)
    assert len(task.trials) > len(stuck.trials)
    assert min(tile(candidate) for candidate in task.ranking()[:1]) == 399


def test_a_search_ends_when_every_config_is_measured() -> None:
    task = made_up_task("small", configs=20)
    search, times_us = TemplateEngine([task], seed=0), itertools.count(1000, -1)
    while batch := search.next_batch(7):
        assert len(batch) <= 7
        play(search, batch, lambda _: 1.02 ** next(times_us))
    assert len(task.trials) == 20
    assert len({candidate.key for candidate, _ in task.trials}) == 20


def test_a_kernel_of_which_nothing_works_is_given_up() -> None:
    broken, works = made_up_task("broken", configs=300), made_up_task("works", configs=300)
    search = TemplateEngine([broken, works], seed=0)
    while batch := search.next_batch(16):
        search.learn(batch, [record(c) if c.kernel is broken.kernel else record(c, 3.0) for c in batch])
    assert broken.best_us is None and 1 < len(broken.trials) < 40
    assert works.trials and works.untried


def test_the_cost_model_says_nothing_before_it_has_learned() -> None:
    model = CostModel(0)
    model.train()
    assert model.predict(list(made_up_task("new").untried.values())) is None


def test_the_cost_model_ranks_what_it_has_not_seen() -> None:
    candidates = list(made_up_task("learned", configs=64).untried.values())
    seen = random.Random(3).sample(candidates, 40)
    model = CostModel(0, [record(candidate, 10.0 + abs(tile(candidate) - 20)) for candidate in seen])
    model.learn([record(candidates[-1])])
    model.train()
    near = [candidate for candidate in candidates if abs(tile(candidate) - 20) < 8 and candidate not in seen]
    far = [candidate for candidate in candidates if tile(candidate) > 45]
    near_scores, far_scores = model.predict(near), model.predict(far)
    assert near_scores is not None and far_scores is not None
    assert near_scores.min() > far_scores.max()


def test_what_other_kernels_taught_makes_the_first_batch_good() -> None:
    elsewhere = made_up_task("fused_add(float32[8,8] float32[8,8])#1", configs=64)
    earlier = [record(c, 10.0 + abs(tile(c) - 20)) for c in elsewhere.untried.values()]
    task = made_up_task("fused_add(float32[8,8] float32[8,8])#2", configs=64)
    task.add(task.untuned, record(task.untuned, 22.0))

    def distance(search: TemplateEngine) -> float:
        return statistics.mean(abs(tile(candidate) - 20) for candidate in search.next_batch(12))

    assert distance(TemplateEngine([task], seed=0, earlier=earlier)) < 8 < distance(TemplateEngine([task], seed=0))


@pytest.mark.parametrize("seed", [0, 11])
def test_the_same_seed_searches_the_same_way(seed: int) -> None:
    def trace() -> list:
        task = made_up_task("traced")
        search, keys = TemplateEngine([task], seed), []
        for _ in range(3):
            batch = search.next_batch(16)
            play(search, batch, lambda config: 10.0 + int(config["tile"]) % 7)
            keys += [candidate.key for candidate in batch]
        return keys

    assert trace() == trace()


@given(
    st.text(max_size=60)
    | st.from_regex(r"[a-z_0-9]{1,12}\((float32\[[0-9,?]{0,9}\] ?){0,4}\)#[0-9a-f]{4}", fullmatch=True),
    st.dictionaries(st.text(max_size=6), st.integers(0, 1 << 20) | st.text(max_size=4) | st.booleans(), max_size=5),
)
def test_features_are_finite_numbers_whatever_a_log_holds(kernel: str, config: dict) -> None:
    features = candidate_features(kernel, "template", config)
    assert all(math.isfinite(value) for value in features.values())
    assert features["template=template"] == 1.0


def test_a_record_of_another_target_or_of_another_template_version_counts_for_nothing() -> None:
    lowered = network()
    task = find_tasks(lowered, NATIVE, LogRecords())[0]
    good = record(task.untuned, 3.0)
    other = parse_preset("arm:cortex-a72")
    older = record(task.untuned, 1.0)
    older = TrialRecord(**{name: getattr(older, name) for name in older.__struct_fields__} | {"template_version": 99})
    records = LogRecords([good, older, record(task.untuned, 2.0, target=other)])
    assert find_tasks(lowered, NATIVE, records)[0].best_us == 3.0
    assert find_tasks(lowered, NATIVE, records)[0].untuned_us == 3.0


def test_a_build_takes_what_the_final_check_found_best_though_a_trial_of_another_template_was_quicker() -> None:
    kernel = network().kernels[0]
    first, second = (Candidate(kernel, t, t.guess(kernel, NATIVE)) for t in fitting_templates(kernel, NATIVE)[:2])
    trials = [record(first, 5.0), record(second, 1.0)]
    assert plan_kernel(kernel, NATIVE, LogRecords(trials)).record == trials[1]
    checked = msgspec.structs.replace(trials[0], final=True, times_us=(9.0,))
    assert plan_kernel(kernel, NATIVE, LogRecords([*trials, checked])).record == checked


def test_a_kernel_with_unknown_extents_is_not_tuned() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    a = te.placeholder((rows, 37), F32, "a")
    kernel = lower_function(te.create_prim_func([a, te.compute((rows, 37), lambda i, j: a[i, j] * 2, "b")]))
    assert find_tasks(LoweredModel(tvm.IRModule(), (kernel,)), NATIVE, LogRecords()) == []


@contextlib.contextmanager
def no_measuring() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tvmbridge.tuning.measure.local.LocalMeasurer.measure", lambda *_: pytest.fail("something was measured")
        )
        yield


@pytest.mark.slow
def test_a_budget_of_trials_is_spent_to_the_trial_and_resumed(tmp_path: Path) -> None:
    reports: list[TuneProgress] = []
    log, lowered = tmp_path / "m.tune.jsonl", network()
    first = search_kernels(lowered, NATIVE, budget=Budget(trials=7), log=log, on_progress=reports.append)
    assert (first.trials, first.known, first.ended) == (7, 0, "7 trials spent")
    assert reports[-1] == first
    assert [report.ended for report in reports[:-1]] == [None] * (len(reports) - 1)
    assert len(read_log(log)) == 7
    with no_measuring():
        again = search_kernels(lowered, NATIVE, budget=Budget(trials=7), log=log)
    assert (again.trials, again.known, again.ended) == (0, 7, "7 trials spent")
    more = search_kernels(lowered, NATIVE, budget=Budget(trials=30), log=log)
    assert (more.trials, more.known) == (23, 7)
    records = list(read_log(log))
    assert len({(r.kernel, r.template, r.config_key) for r in records}) == len(records) == 30
    assert not [r.error for r in records if r.error]


@pytest.mark.slow
def test_the_best_measured_config_is_what_a_build_takes(tmp_path: Path) -> None:
    log, lowered = tmp_path / "m.tune.jsonl", network()
    progress = search_kernels(lowered, NATIVE, budget=Budget(trials=20), log=log)
    assert 0 < progress.best_us <= progress.untuned_us
    assert all(gain.best_us <= gain.untuned_us for gain in progress.kernels if gain.best_us and gain.untuned_us)
    records = read_log(log)
    plans = {kernel.key: plan_kernel(kernel, NATIVE, records) for kernel in lowered.kernels}
    for gain in progress.kernels:
        plan = plans[gain.kernel]
        assert plan.record is not None and plan.record.median_us == gain.best_us
        assert plan.config == plan.record.config
    x = random_array(np.random.default_rng(1), (24, 64), F32)
    chosen = {key: (plan.template, plan.config) for key, plan in plans.items()}
    (output,) = run_lowered(lowered, NATIVE, [x], lambda kernel: chosen[kernel.key])
    y = np.exp(np.maximum(x.astype("float64") @ WEIGHTS.astype("float64"), 0))
    np.testing.assert_allclose(output, y / y.sum(-1, keepdims=True), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_tuning_ends_by_itself_when_nothing_more_is_won(tmp_path: Path) -> None:
    lowered = lower_expression(lambda x: relax.op.exp(x), [((64, 64), F32)], NATIVE)
    progress = search_kernels(lowered, NATIVE, budget=Budget(trials=500), log=tmp_path / "m.tune.jsonl")
    assert progress.ended == "converged"
    (kernel,) = lowered.kernels
    assert progress.trials == sum(len(each.configs(kernel, NATIVE)) for each in fitting_templates(kernel, NATIVE))


def test_no_time_at_all_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalMeasurer, "_start", lambda _self: None)
    with no_measuring():
        progress = search_kernels(network(), NATIVE, budget=Budget(minutes=0), log=tmp_path / "m.tune.jsonl")
    assert (progress.trials, progress.ended) == (0, "0 min spent")


@pytest.mark.parametrize("preset", ["arm:cortex-a72", "cuda:sm_90", "x86:x86-64-v2"])
def test_a_target_that_is_not_measured_here_is_refused(preset: str, tmp_path: Path) -> None:
    target = parse_preset(preset)
    with pytest.raises(TuningError, match=f"{target.name} cannot be tuned here: "):
        search_kernels(network(), target, budget=Budget(trials=1), log=tmp_path / "m.tune.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_no_log_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    log = tmp_path / "m.tune.jsonl"
    log.write_text("my diary\n")
    with no_measuring(), pytest.raises(LogError):
        search_kernels(network(), NATIVE, budget=Budget(trials=1), log=log)
    assert log.read_text() == "my diary\n"


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_a_log_to_resume_from(with_signal: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "m.tune.jsonl"
    program = (
        "import test_tuning as t\n"
        f"t.search_kernels(t.network(), t.NATIVE, budget=t.Budget(trials=10**6), log={str(log)!r})"
    )
    with start_python(program) as process:
        until = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") > 2) and time.monotonic() < until:
            time.sleep(0.05)
        workers = processes_below(process.pid)
        process.send_signal(with_signal)
        assert process.wait() != 0
    assert workers
    wait_until_gone(workers)
    known = len(read_log(log))
    assert known >= 2
    progress: TuneProgress = search_kernels(network(), NATIVE, budget=Budget(trials=known + 2), log=log)
    assert (progress.known, progress.trials) == (known, 2)
