"""What a tuning run says of itself: after every batch, and once at the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from tvmbridge.gpus import read_gpu_states
from tvmbridge.host import run_command
from tvmbridge.targets import Target
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.final_check import FinalCheck
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Task


@dataclasses.dataclass(frozen=True)
class KernelGain:
    """One kernel's result: median times of one call, microseconds; None where nothing was measured.

    kernel: its key. name: in the lowered model. calls: of it in one run of the network. configs: that it has to choose
    from, all templates together; None where the engine does not list them. trials: measured so far, those known from
    logs too. flops: arithmetic of one call; None where that depends on the data.
    """

    kernel: str
    name: str
    calls: int
    configs: int | None
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
    """Where a run stands.

    stage: "search", or "check" for the final check.
    trials: measured by this run; failed: of them. known: found in the logs at the start; elsewhere: of them, those in
    other logs than the one that is written. known_kernels: kernels of which any was found.
    untuned_us, best_us: the sum over the tuned kernels of time × calls, each kernel measured alone.
    emulated: whether all of these times were measured under emulation.
    ended: why the search ended; None before that.
    check: the final check; None before it, or where there was none. problem: why it failed.
    gpus: for a target measured on a GPU here, what the driver says of each at the end: clocks, limits, temperature.
    """

    target: str
    stage: str
    trials: int
    failed: int
    known: int
    elsewhere: int
    known_kernels: int
    elapsed_s: float
    budget: Budget
    untuned_us: float
    best_us: float
    kernels: tuple[KernelGain, ...]
    emulated: bool = False
    ended: str | None = None
    check: FinalCheck | None = None
    problem: str | None = None
    gpus: tuple[str, ...] = ()


class Progress:
    """Counts what a run does and tells `listener`. tasks: with what the logs know of them at the start."""

    def __init__(
        self,
        target: Target,
        budget: Budget,
        tasks: Sequence[Task],
        elsewhere: int,
        listener: Callable[[TuneProgress], None] | None,
    ) -> None:
        self.tasks = tasks
        self.known = sum(len(task.trials) for task in tasks)
        self.trials = 0
        self._target, self._budget, self._listener = target, budget, listener
        self._elsewhere = elsewhere
        self._known_kernels = sum(bool(task.trials) for task in tasks)
        self._failed = 0
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    @property
    def seconds_per_trial(self) -> float | None:
        """Of this run so far; None before the first trial."""
        return self.elapsed_s / self.trials if self.trials else None

    def count(self, records: Sequence[TrialRecord]) -> None:
        """A batch was measured."""
        self.trials += len(records)
        self._failed += sum(record.error is not None for record in records)
        self.report()

    def report(self, stage: str = "search") -> None:
        """Say where the run stands."""
        if self._listener is not None:
            self._listener(self._now(stage))

    def end(self, ended: str, check: FinalCheck | None = None, problem: str | None = None) -> TuneProgress:
        """Say how the run ended, and return it."""
        here = self._target.kind == "cuda" and self._target.measure == "local"
        gpus = tuple(map(str, read_gpu_states(run_command))) if here else ()
        last = dataclasses.replace(self._now("search"), ended=ended, check=check, problem=problem, gpus=gpus)
        if self._listener is not None:
            self._listener(last)
        return last

    def _now(self, stage: str) -> TuneProgress:
        gains = tuple(_gain(task) for task in self.tasks)
        compared = [gain for gain in gains if gain.untuned_us is not None and gain.best_us is not None]
        return TuneProgress(
            target=self._target.name,
            stage=stage,
            trials=self.trials,
            failed=self._failed,
            known=self.known,
            elsewhere=self._elsewhere,
            known_kernels=self._known_kernels,
            elapsed_s=self.elapsed_s,
            budget=self._budget,
            untuned_us=sum((gain.untuned_us or 0.0) * gain.calls for gain in compared),
            best_us=sum((gain.best_us or 0.0) * gain.calls for gain in compared),
            kernels=gains,
            emulated=self._target.emulated,
        )


def _gain(task: Task) -> KernelGain:
    return KernelGain(
        kernel=task.kernel.key,
        name=task.kernel.name,
        calls=task.kernel.calls,
        configs=task.configs,
        trials=len(task.trials),
        flops=task.flops,
        untuned_us=task.untuned_us,
        best_us=task.best_us,
    )
