"""The process that compiles and times candidates for `local`.

It imports TVM once and never runs a kernel itself, so that it can fork a child for each candidate: a child that
crashes, hangs or eats the memory costs that candidate and nothing else. (A process in which TVM has run a kernel has
TVM's threads, and a child forked from it would wait for them for ever.) The children of a batch compile side by side,
one a core, and then take turns to run, so that no compiler disturbs a measurement.

Protocol: one JSON object a line. In: {"kernels": {key: [name, ir, constants]}, "target": …} once, then
{"candidates": [[kernel key, template, config, best_us], …], "build_timeout_s", "run_timeout_s"} per batch. Out: one
{"index", "times_us", "error"} per candidate, in any order.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import tvm

from tvmbridge.errors import reason
from tvmbridge.host import detect_host
from tvmbridge.lowering import Kernel
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import recorded_templates
from tvmbridge.targets import Target

_REPEATS = 5
_REPEAT_MS = 10
_HOPELESS = 3.0  # a first run this many times slower than the best known ends the trial: it cannot win
_MEMORY_BYTES = 8 << 30  # of address space on top of what the process has: a runaway child fails its own allocation


def main() -> int:
    """Serve batches until standard input ends."""
    # What TVM or a linker prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    opening = json.loads(requests.readline())
    target = msgspec.convert(opening["target"], Target)
    kernels = {
        key: Kernel(name, tvm.ir.load_json(ir), key, frozenset(constants), 1)
        for key, (name, ir, constants) in opening["kernels"].items()
    }
    answers.write(b'{"ready": true}\n')
    for line in requests:
        batch = json.loads(line)
        _run_batch(batch, kernels, target, answers)
    return 0


class _Child:
    """A forked child: `up` brings its messages (a byte "B" when built, then its result), `down` tells it to run."""

    def __init__(self, index: int, pid: int, up: int, down: int) -> None:
        self.index, self.pid, self.up, self.down = index, pid, up, down
        self.started = time.monotonic()

    def result(self) -> dict[str, Any] | None:
        """What it says until it closes its end; None where that is no whole answer."""
        data = b""
        while chunk := os.read(self.up, 65536):
            data += chunk
        try:
            return json.loads(data)
        except ValueError:
            return None

    def end(self) -> str:
        """Kill it if it still lives, reap it, and say what ended it."""
        os.kill(self.pid, signal.SIGKILL)  # a dead child stays there to be signalled until it is reaped
        _, status = os.waitpid(self.pid, 0)
        os.close(self.up)
        os.close(self.down)
        return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"


def _run_batch(batch: dict[str, Any], kernels: dict[str, Kernel], target: Target, answers: BinaryIO) -> None:
    def answer(index: int, result: dict[str, Any]) -> None:
        answers.write(json.dumps({"index": index, **result}).encode() + b"\n")

    cores = detect_host().cores
    waiting = list(enumerate(batch["candidates"]))
    building: list[_Child] = []
    built: list[_Child] = []
    while waiting or building:
        while waiting and len(building) < cores:
            index, (key, template, config, best_us) = waiting.pop(0)
            building.append(_fork(index, kernels[key], target, template, config, best_us))
        ready, _, _ = select.select([child.up for child in building], [], [], 0.05)
        for child in list(building):
            if child.up in ready:
                building.remove(child)
                if os.read(child.up, 1) == b"B":
                    built.append(child)
                else:
                    result = child.result()
                    ended = child.end()
                    answer(child.index, result or _failed(f"died while compiling: {ended}"))
            elif time.monotonic() - child.started > batch["build_timeout_s"]:
                building.remove(child)
                child.end()
                answer(child.index, _failed(f"compiling took over {batch['build_timeout_s']:g} s"))
    for child in built:
        with contextlib.suppress(BrokenPipeError):  # it died while it waited: its missing result says so
            os.write(child.down, b"G")
        ready, _, _ = select.select([child.up], [], [], batch["run_timeout_s"])
        result = child.result() if ready else _failed(f"running took over {batch['run_timeout_s']:g} s")
        ended = child.end()
        answer(child.index, result or _failed(f"died while running: {ended}"))


def _failed(error: str) -> dict[str, Any]:
    return {"times_us": [], "error": error}


def _fork(index: int, kernel: Kernel, target: Target, template: str, config: dict, best_us: float | None) -> _Child:
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(up_read)
        os.close(down_write)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _measure(kernel, target, template, config, best_us, up_write, down_read)
        finally:
            os._exit(0)
    os.close(up_write)
    os.close(down_read)
    return _Child(index, pid, up_read, down_write)


def _measure(
    kernel: Kernel, target: Target, template: str, config: dict, best_us: float | None, up: int, down: int
) -> None:
    """In the child: compile, say so, wait for the turn, time, answer."""
    try:
        with contextlib.suppress(OSError):  # not every system lets us say that this process is the first to go
            Path("/proc/self/oom_score_adj").write_text("1000")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
        chosen = next(t for t in recorded_templates(kernel, target) if t.name == template)
        function = chosen.schedule(kernel, target, config).function
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        described = tvm_target(target)
        library = machine_code(module, described).mod
    except BaseException as exc:  # whatever it was, this candidate failed, and the parent gets to know why
        os.write(up, b"E")  # not "B": no turn is waited for
        os.write(up, json.dumps(_failed(reason(exc))).encode())
        return
    os.write(up, b"B")
    if not os.read(down, 1):  # the worker is gone, and nobody waits for a result
        return
    try:
        generator = np.random.default_rng(0)
        tensors = [tvm.runtime.tensor(_data(generator, parameter)) for parameter in function.params]
        os.write(up, json.dumps({"times_us": _time(library, tensors, best_us), "error": None}).encode())
    except BaseException as exc:  # as above
        os.write(up, json.dumps(_failed(reason(exc))).encode())


def _data(generator: np.random.Generator, parameter: Any) -> np.ndarray:
    shape, dtype = [int(axis) for axis in parameter.shape], str(parameter.dtype)
    if dtype.startswith("float"):
        return generator.normal(size=shape).astype(dtype)
    return np.zeros(shape, dtype)  # indices: zero is always in range


def _time(library: tvm.runtime.Module, tensors: list[tvm.runtime.Tensor], best_us: float | None) -> list[float]:
    """Microseconds per call, one median-able figure a repeat, caches warm."""
    once = library.time_evaluator("main", tvm.cpu(), number=1, repeat=2)(*tensors).results[-1] * 1e6
    if best_us is not None and once > _HOPELESS * best_us:
        return [once]
    timed = library.time_evaluator("main", tvm.cpu(), number=1, repeat=_REPEATS, min_repeat_ms=_REPEAT_MS)(*tensors)
    return [seconds * 1e6 for seconds in timed.results]


if __name__ == "__main__":
    sys.exit(main())
