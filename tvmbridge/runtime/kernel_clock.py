"""Times the kernels of a model where they run: in the network, one after the other, on whatever the caches hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_FIRST_RUNS, _LEAST_RUNS = 1, 3  # the first one, which allocates, does not count
_MACHINE_STEP = "vm.builtin."  # the virtual machine's own functions: allocating, checking inputs


class KernelClock:
    """What the virtual machine calls before and after each function; what it times includes about a microsecond.

    now: takes a moment; None: by this machine's clock. between: the seconds from one moment to another, once a run is
    over. forget: called when the moments of a run are not needed any more.
    """

    def __init__(
        self,
        now: Callable[[], Any] | None = None,
        between: Callable[[Any, Any], float] = lambda start, end: end - start,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._now, self._between, self._forget = now or time.perf_counter, between, forget
        self._spans: list[tuple[str, Any, Any]] = []
        self._started: Any = None

    def __call__(self, _function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
        """Take the time; 0 tells the machine to go on."""
        now = self._now()
        if not before:
            self._spans.append((name, self._started, now))
        self._started = self._now()
        return 0

    def time_kernels(self, run: Callable[[], object], seconds: float) -> dict[str, float]:
        """Call `run` for about `seconds`; the microseconds that each kernel takes of one run.

        All calls of a kernel count together, and of the runs the median does.
        """
        runs: list[dict[str, float]] = []
        until = time.perf_counter() + seconds
        while len(runs) < _FIRST_RUNS + _LEAST_RUNS or time.perf_counter() < until:
            self._spans = []
            run()
            runs.append(self._add_up())
            self._forget()
        import statistics  # takes milliseconds to import, which every start would pay

        counted = runs[_FIRST_RUNS:]
        names = [name for name in runs[0] if not name.startswith(_MACHINE_STEP)]
        return {name: statistics.median(times.get(name, 0.0) for times in counted) * 1e6 for name in names}

    def _add_up(self) -> dict[str, float]:
        taken: dict[str, float] = {}
        for name, start, end in self._spans:
            taken[name] = taken.get(name, 0.0) + self._between(start, end)
        return taken
