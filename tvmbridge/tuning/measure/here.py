"""Times libraries on this machine, one after the other, each in a process of its own."""

from __future__ import annotations

import collections
from collections.abc import Callable

from tvmbridge.tuning.measure.building import Built, name_candidate
from tvmbridge.tuning.measure.forks import ForkServer, JobEnd
from tvmbridge.tuning.measure.overlapped import Defer, Timed

RUN_TIMEOUT_S = 20.0


class HereTimer:
    """Times libraries that were compiled elsewhere: nothing else of ours runs here meanwhile."""

    def __init__(self, forks: ForkServer, defer: Defer) -> None:
        self.devices = 1
        self._forks, self._defer = forks, defer
        self._waiting: collections.deque[tuple[Built, float | None, Callable[[Timed], None]]] = collections.deque()
        self._running = False

    def start(self) -> None:
        """Nothing: the fork server is its owner's."""

    def stop(self) -> None:
        """Nothing: the fork server is its owner's."""

    def time(self, built: Built, best_us: float | None, on_timed: Callable[[Timed], None]) -> None:
        """Line a library up for its turn."""
        self._waiting.append((built, best_us, on_timed))
        self._next()

    def check(self) -> None:
        """Nothing to find out: a fork server that ends answers all that wait."""

    def _next(self) -> None:
        if self._running or not self._waiting:
            return
        built, best_us, on_timed = self._waiting.popleft()
        self._running = True
        arguments = {**name_candidate(built.candidate), "library": str(built.library), "best_us": best_us}

        def finish(end: JobEnd) -> None:
            if end.ended is None and end.result is None:
                raise self._forks.error()
            self._running = False
            if end.result is not None:
                on_timed(Timed(tuple(end.result.get("times_us", ())), end.result.get("error")))
            elif end.late:
                on_timed(Timed((), f"running took over {RUN_TIMEOUT_S:g} s"))
            else:
                on_timed(Timed((), f"{end.ended} while running"))
            self._next()

        limits_s: dict[str, float | None] = {"running": RUN_TIMEOUT_S}
        self._forks.submit("time_here", arguments, limits_s, lambda end: self._defer(lambda: finish(end)))
