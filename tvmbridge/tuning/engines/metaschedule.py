"""TVM's MetaSchedule as an engine: its search spaces and evolutionary search, with our measurers, log and budget.

It needs no template: it transforms the loops that a kernel has, on CPUs and GPUs, and leaves weights in their order.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence

import numpy as np
from tvm.s_tir import meta_schedule as ms

from tvmbridge.errors import is_interrupt, reason
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import fitting_templates
from tvmbridge.schedules.metaschedule import TEMPLATE, replay, trace_config, workload
from tvmbridge.schedules.tensor_spaces import SET, has_tensor_space, tensor_ways
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord, render_config
from tvmbridge.tuning.tasks import Candidate, Task, is_static

LOGGER = logging.getLogger(__name__)

_BATCH = 16  # of one kernel: a generation of the search
_PATIENCE = 3  # batches without a gain, after which a kernel counts as converged
_EMPTY_ROUNDS = 5  # generations with nothing new, after which a kernel's space counts as exhausted
# A small population, often renewed: of TVM's 512, all but a few are never measured, and each costs 10 ms to make.
_POPULATION = 64
_RANDOM_POPULATION = 16
_GENERATIONS = 3
_RANDOM_TRIALS = 32  # measured before the cost model is asked
_FAILED_S = 1e10  # MetaSchedule's time for what failed


def metaschedule_tasks(lowered: LoweredModel, target: Target, records: LogRecords) -> list[Task]:
    """Every kernel of known extents, with what the records say of its untuned choice and of MetaSchedule's traces."""
    tasks = []
    for kernel in filter(is_static, lowered.kernels):
        template = fitting_templates(kernel, target)[0]
        untuned = Candidate(kernel, template, template.guess(kernel, target))
        task = Task(kernel, untuned, [])
        task.configs = None
        for record in records.measured(kernel.key, target.key):
            known = Candidate(kernel, TEMPLATE, record.config)
            if (record.template, record.template_version) != (TEMPLATE.name, TEMPLATE.version):
                known = untuned
            if known.key == (record.kernel, record.template, record.template_version, render_config(record.config)):
                task.add(known, record)
        tasks.append(task)
    return tasks


class MetaScheduleEngine:
    """The `Engine` over these tasks; what their trials say of traces already is where it starts from."""

    def __init__(self, tasks: Sequence[Task], target: Target, seed: int) -> None:
        self._tasks = {task.kernel.key: task for task in tasks}
        self._target, self._seed = target, seed
        self._searches: dict[str, _Search] = {}
        self._exhausted: set[str] = set()
        self._draws = _Draws(seed)
        config = ms.cost_model.xgb_model.XGBConfig(seed=seed, nthread=1)
        self._cost_model = ms.cost_model.XGBModel(config=config, num_warmup_samples=_RANDOM_TRIALS, verbose_eval=0)

    def next_batch(self, limit: int) -> list[Candidate]:
        """At most `limit` candidates: every kernel's untuned choice first, then traces of the most promising kernel."""
        opening = [task.untuned for task in self._tasks.values() if task.untried]
        if opening:
            return opening[:limit]
        while open_tasks := [task for task in self._tasks.values() if self._is_open(task)]:
            task = max(open_tasks, key=lambda task: (task.best_us or 0.0) * task.kernel.calls / 2 ** _stale(task))
            if batch := self._search(task).propose(min(limit, _BATCH)):
                return batch
            self._exhausted.add(task.kernel.key)
        return []

    def learn(self, batch: Sequence[Candidate], records: Sequence[TrialRecord]) -> None:
        """Take in a batch's records: the tasks get them, and each kernel's search and the cost model learn of them."""
        for key in dict.fromkeys(candidate.kernel.key for candidate in batch):
            task = self._tasks[key]
            results = [(c, r) for c, r in zip(batch, records, strict=True) if c.kernel.key == key]
            for candidate, record in results:
                task.add(candidate, record)
            if key in self._searches:
                self._searches[key].learn(results)

    def _is_open(self, task: Task) -> bool:
        return task.kernel.key not in self._exhausted and _stale(task) < _PATIENCE

    def _search(self, task: Task) -> _Search:
        key = task.kernel.key
        if key not in self._searches:
            self._searches[key] = _Search(task, self._target, self._seed, self._cost_model, self._draws)
        return self._searches[key]


def _stale(task: Task) -> float:
    """How many batches have brought no gain."""
    return task.trials_since_better / _BATCH


class _Draws:
    """A sequence of NumPy's global generator that is ours: MetaSchedule's cost model draws from that one."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        outside = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(outside)


class _Search:
    """MetaSchedule's search for one kernel."""

    def __init__(self, task: Task, target: Target, seed: int, cost_model: ms.CostModel, draws: _Draws) -> None:
        self._kernel, self._cost_model, self._draws = task.kernel, cost_model, draws
        self._described = tvm_target(target)
        self._known = {candidate.key for candidate, _ in task.trials}
        self._waiting: list[Candidate] = []
        self._proposed: dict[tuple[str, str, int, str], ms.MeasureCandidate] = {}
        self._database = ms.database.MemoryDatabase()
        self._arguments = ms.arg_info.ArgInfo.from_prim_func(task.kernel.function)
        self._context = _make_context(
            task.kernel, target, random.Random(f"{seed} {task.kernel.key}").randrange(1, 2**30)
        )
        self._workload = self._database.commit_workload(self._context.mod)
        self._start(target)
        self._resume(task, target)

    def propose(self, limit: int) -> list[Candidate]:
        """At most `limit` traces that were neither measured nor proposed before; none where the space has no more."""
        for _ in range(_EMPTY_ROUNDS):
            if self._waiting:
                break
            self._generate()
        batch, self._waiting = self._waiting[:limit], self._waiting[limit:]
        return batch

    def learn(self, results: Sequence[tuple[Candidate, TrialRecord]]) -> None:
        """Take in the records of what was proposed."""
        measured = [(self._proposed.pop(c.key), _run_secs(r)) for c, r in results if c.key in self._proposed]
        self._take_in(measured)

    def _start(self, target: Target) -> None:
        """Find the ways to schedule the kernel; none where MetaSchedule has no answer to it."""
        try:
            spaces = [*self._context.generate_design_space()]
            if has_tensor_space(self._kernel, target):
                spaces += tensor_ways(self._kernel, target, self._context.mod)
            self._context.pre_tuning(1 << 30, _BATCH, spaces, self._database, self._cost_model)
        except Exception as exc:  # its rules raise many kinds on kernels that they were not written for
            if is_interrupt(exc):
                raise KeyboardInterrupt from exc
            LOGGER.warning("MetaSchedule has no schedules for %s: %s", self._kernel.key, reason(exc))
            self._started = False
        else:
            self._started = True

    def _resume(self, task: Task, target: Target) -> None:
        """Feed it what was measured in earlier runs."""
        measured = []
        for candidate, record in task.trials:
            if candidate.template is not TEMPLATE:
                continue
            try:
                schedule = replay(task.kernel, target, candidate.config)
            except Exception as exc:  # as in plan_kernel: a trace that does not apply teaches nothing
                if is_interrupt(exc):
                    raise KeyboardInterrupt from exc
                continue
            measured.append((ms.MeasureCandidate(schedule, self._arguments), _run_secs(record)))
        self._take_in(measured)

    def _generate(self) -> None:
        if not self._started:
            return
        try:
            with self._draws():
                generated = self._context.generate_measure_candidates()
        except Exception as exc:  # as in _start
            if is_interrupt(exc):
                raise KeyboardInterrupt from exc
            LOGGER.warning("MetaSchedule gave up on %s: %s", self._kernel.key, reason(exc))
            generated = None
        if generated is None:
            self._started = False
            return
        for proposal in generated:
            candidate = Candidate(self._kernel, TEMPLATE, trace_config(proposal.sch.trace))
            if candidate.key not in self._known:
                self._known.add(candidate.key)
                self._proposed[candidate.key] = proposal
                self._waiting.append(candidate)

    def _take_in(self, measured: Sequence[tuple[ms.MeasureCandidate, list[float] | None]]) -> None:
        if not measured:
            return
        for proposal, run_secs in measured:
            trace, times = proposal.sch.trace, run_secs or [_FAILED_S]
            record = ms.database.TuningRecord(trace, self._workload, times, self._described, proposal.args_info)
            self._database.commit_tuning_record(record)
        proposals = [proposal for proposal, _ in measured]
        results = [ms.runner.RunnerResult(times, None if times else "failed") for _, times in measured]
        with self._draws():
            self._cost_model.update(self._context, proposals, results)
        if self._started:
            self._context.notify_runner_results(proposals, results)


def _run_secs(record: TrialRecord) -> list[float] | None:
    return [time_us * 1e-6 for time_us in record.times_us] or None


def _make_context(kernel: Kernel, target: Target, seed: int) -> ms.TuneContext:
    """A tuning context for one kernel, of one thread: with more, the same seed would not search the same way."""
    rules = "cuda" if target.kind == "cuda" else "llvm"
    after = SET if has_tensor_space(kernel, target) else rules
    space = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=after, mutator_probs=after)
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=_POPULATION, init_min_unmeasured=_RANDOM_POPULATION, genetic_num_iters=_GENERATIONS
    )
    context = ms._ffi_api.TuneContext(
        workload(kernel), tvm_target(target), space, strategy, kernel.name, 1, seed, _log_quietly
    )
    ms._ffi_api.TuneContextInitialize(context)
    return context


def _log_quietly(_level: int, file: str, line: int, message: str) -> None:
    LOGGER.debug("%s:%d: %s", file, line, message)
