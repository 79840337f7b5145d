"""The measurer made of a builder and a timer: candidates are compiled while earlier ones are timed."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import queue
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tvmbridge.targets import Target
from tvmbridge.tuning.measure.building import Builder, Built
from tvmbridge.tuning.measure.forks import ForkServer
from tvmbridge.tuning.record import TrialRecord, now_utc
from tvmbridge.tuning.tasks import Candidate

_CHECK_EVERY_S = 1.0

Defer = Callable[[Callable[[], None]], None]


@dataclasses.dataclass(frozen=True)
class Timed:
    """times_us: one per repetition; empty where there is an error."""

    times_us: tuple[float, ...]
    error: str | None = None


class Timer(Protocol):
    """Times built libraries somewhere.

    devices: how many can be timed at the same time.
    """

    devices: int

    def start(self) -> None:
        """TuningError where nothing can be timed."""
        ...

    def stop(self) -> None:
        """End everything that `start` and `time` have started."""
        ...

    def time(self, built: Built, best_us: float | None, on_timed: Callable[[Timed], None]) -> None:
        """Line a library up to be timed; `on_timed` is called once, in the thread of the measurer."""
        ...

    def check(self) -> None:
        """TuningError where libraries wait and nothing is left to time them. Called every second or so."""
        ...


class OverlappedMeasurer:
    """A context manager around a builder, a timer and the fork server that they may use.

    parts: makes the builder and the timer. Each gets a function that defers a call into this measurer's thread.
    devices: how many candidates can be timed at the same time; changes as devices come and go.
    """

    def __init__(
        self, target: Target, seed: int, forks: ForkServer, parts: Callable[[Defer], tuple[Builder, Timer]]
    ) -> None:
        self._target, self._seed, self._forks = target, seed, forks
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._builder, self._timer = parts(self._calls.put)
        self.devices = self._timer.devices
        self._open = contextlib.ExitStack()
        self._libraries = 0

    def __enter__(self) -> OverlappedMeasurer:
        with contextlib.ExitStack() as opening:
            self._folder = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="tvmbridge-")))
            self._builder.start()
            opening.callback(self._builder.stop)
            self._timer.start()
            opening.callback(self._timer.stop)
            self.devices = self._timer.devices
            self._forks.start()
            opening.callback(self._forks.stop)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def measure(self, candidates: Sequence[tuple[Candidate, float | None]]) -> list[TrialRecord]:
        """Time a batch of (candidate, best time known of its kernel in microseconds); one record each, in order.

        A candidate that crashes, hangs or cannot be compiled has an error in its record. TuningError where nothing
        can be built or timed any more.
        """
        waiting = collections.deque(enumerate(candidates))
        results: dict[int, Timed] = {}
        building = 0

        def built(index: int, best_us: float | None, outcome: Built) -> None:
            nonlocal building
            building -= 1
            if outcome.error is not None:
                results[index] = Timed((), outcome.error)
            else:
                self._timer.time(outcome, best_us, lambda timed: finish(index, outcome.library, timed))

        def finish(index: int, library: Path, timed: Timed) -> None:
            results[index] = timed
            library.unlink()

        checked = time.monotonic()
        while len(results) < len(candidates):
            while waiting and building < self._builder.slots:
                index, (candidate, best_us) = waiting.popleft()
                building += 1
                self._libraries += 1
                library = self._folder / f"{self._libraries}.so"
                self._builder.build(candidate, library, functools.partial(built, index, best_us))
            with contextlib.suppress(queue.Empty):
                self._calls.get(timeout=_CHECK_EVERY_S)()
            if time.monotonic() - checked > _CHECK_EVERY_S:
                checked = time.monotonic()
                self._builder.check()
                self._timer.check()
                self.devices = self._timer.devices
        when = now_utc()
        return [
            candidate.record(self._target, results[index].times_us, results[index].error, seed=self._seed, when=when)
            for index, (candidate, _) in enumerate(candidates)
        ]
