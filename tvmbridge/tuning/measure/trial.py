"""One trial, in a process of its own: schedule, compile, wait for the turn, time, say what came of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import tvm

from tvmbridge.errors import reason
from tvmbridge.lowering import Kernel
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import Config, Scheduled, Template, fitting_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.operands import Operands, RandomData
from tvmbridge.tuning.measure.reference import References
from tvmbridge.tuning.measure.stopping import MOST_S, believed, is_enough, is_hopeless, undisturbed

_CLOSE = 1.05  # times the best known: who is slower is no finalist, and need not be right
MORE_LOOKS = 2  # at what seems hopeless: one call may have been interrupted
REPEAT_US = 1000.0  # calls that take less are timed together: many that follow each other, as one repeat


class TrialError(Exception):
    """Why there is no time, in words for the record."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What to measure."""

    kernel: Kernel
    target: Target
    template: Template
    config: Config

    def run(self, data: RandomData, references: References, up: int, down: int) -> None:
        """Write lines of JSON to `up`: {"built": true}; after a line {"best_us"} from `down`, the times; or why not.

        Returns early where `down` ends: then nobody waits for a result.
        """
        try:
            scheduled, library = self._compile()
            _write(up, {"built": True})
            line = _read_line(down)
            if not line:
                return
            times_us = self.time(scheduled, library["main"], data, references, json.loads(line)["best_us"])
            _write(up, {"times_us": times_us, "error": None})
        except TrialError as exc:
            _write(up, {"times_us": [], "error": str(exc)})
        except BaseException as exc:  # whatever it was, this candidate failed, and the record says why
            _write(up, {"times_us": [], "error": in_words("failed while running", exc)})

    def time(
        self,
        scheduled: Scheduled,
        function: tvm.runtime.PackedFunc,
        data: RandomData,
        references: References,
        best_us: float | None,
    ) -> list[float]:
        """Microseconds per call of the compiled candidate, of each repeat; TrialError for one that is wrong and quick.

        Only in a process that ends with the trial: TVM's threads stay in it.
        """
        times_us = _time(function, Operands(scheduled.function, self.kernel.constants, data), best_us)

        def untuned() -> tuple[Scheduled, tvm.runtime.PackedFunc]:
            own, compiled = self.untuned()._compile()
            return own, compiled["main"]

        self.check(times_us, best_us, lambda: references.why_wrong(self.kernel, scheduled, function, data, untuned))
        return times_us

    def check(self, times_us: Sequence[float], best_us: float | None, why_wrong: Callable[[], str | None]) -> None:
        """TrialError where a candidate that may win is wrong."""
        may_win = best_us is None or median(times_us) < _CLOSE * best_us
        if may_win and (problem := why_wrong()):
            raise TrialError(problem)

    def untuned(self) -> Trial:
        """The one that an untuned build takes."""
        template = fitting_templates(self.kernel, self.target)[0]
        return dataclasses.replace(self, template=template, config=template.guess(self.kernel, self.target))

    def schedule(self) -> Scheduled:
        """The candidate's function; TrialError where the template refuses the config."""
        try:
            return self.template.schedule(self.kernel, self.target, self.config)
        except BaseException as exc:
            raise TrialError(in_words("cannot be scheduled", exc)) from exc

    def _compile(self) -> tuple[Scheduled, tvm.runtime.Module]:
        scheduled = self.schedule()
        try:
            module = tvm.IRModule({"main": scheduled.function.with_attr("global_symbol", "main")})
            library = machine_code(module, tvm_target(self.target)).mod
            library["main"]  # LLVM's second half, from its own code to the machine's, waits for this
        except BaseException as exc:
            raise TrialError(in_words("cannot be compiled", exc)) from exc
        return scheduled, library


def in_words(what: str, exc: BaseException) -> str:
    """An error for the record: memory that ran out is worth its own word."""
    if isinstance(exc, MemoryError) or "bad_alloc" in str(exc):
        return f"{what}: out of memory"
    return f"{what}: {reason(exc)}"


def _write(up: int, message: dict[str, Any]) -> None:
    os.write(up, json.dumps(message).encode() + b"\n")


def _read_line(down: int) -> bytes:
    data = b""
    while not data.endswith(b"\n") and (more := os.read(down, 4096)):
        data += more
    return data


def _time(function: tvm.runtime.PackedFunc, operands: Operands, best_us: float | None) -> list[float]:
    """Microseconds per call, of each repeat."""
    process_id = os.getpid()
    _spread_threads()
    started = time.perf_counter()
    _repeat(function, operands, 1)  # touches its memory for the first time
    if os.getpid() != process_id:
        os._exit(1)
    if _has_children():
        raise TrialError("started another process")
    call_us, _ = _repeat(function, operands, 1)
    for _ in range(MORE_LOOKS):
        if is_hopeless(call_us, best_us) and time.perf_counter() - started < MOST_S:
            call_us = min(call_us, _repeat(function, operands, 1)[0])
    if is_hopeless(call_us, best_us):
        return [call_us]
    calls = max(1, math.ceil(REPEAT_US / max(call_us, 0.1)))
    repeats: list[tuple[float, bool]] = []
    while not repeats or not is_enough(undisturbed(repeats), best_us, time.perf_counter() - started):
        repeats.append(_repeat(function, operands, calls))
    return believed(repeats)


def _repeat(function: tvm.runtime.PackedFunc, operands: Operands, calls: int) -> tuple[float, bool]:
    """Microseconds per call, and whether another process, or another thread of this one, took a CPU from it."""
    taken = operands.take(calls)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter_ns()
    for each in taken:
        function(*each)
    time_us = (time.perf_counter_ns() - start) / calls / 1e3
    return time_us, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > switches


def _spread_threads() -> None:
    """Put one of the threads of a kernel that uses all CPUs on each of them, and then let them go where they like.

    A thread that has just started may share a CPU with the one that waits for it for a tenth of a second, as long as
    most candidates live. Where there are fewer threads than CPUs, the system's choice is the better one.
    """
    before = _threads()
    tvm.get_global_func("runtime.NumThreads")()  # makes the pool
    threads = [os.getpid(), *sorted(_threads() - before)]
    cpus = sorted(os.sched_getaffinity(0))
    if len(threads) == len(cpus) > 1:
        for thread, cpu in zip(threads, cpus, strict=True):
            os.sched_setaffinity(thread, [cpu])
        for thread in threads:
            os.sched_setaffinity(thread, cpus)


def _threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
