"""The process that forks a child for each job of `jobs`, and ends those that take too long.

It imports TVM once and never runs a kernel itself, so that its children start in milliseconds and in a clean state: a
process in which TVM has run a kernel has TVM's threads, and a child forked from it would wait for them for ever. A
child that crashes, hangs or eats the memory costs its job and nothing else.

Protocol: one JSON object a line. In: {"kernels": {key: [name, ir, constants]}, "target", "idle_s"} once, then
{"id", "job", "arguments", "limits_s": {stage: seconds or null}} per job. Out: {"ready": true} once, then {"id",
"result", "ended", "stage"} per job: a result, or what ended the child ("SIGSEGV", "time-out") and in which stage. It
ends with its standard input, or when it has had nothing to do for `idle_s` seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import tvm

from tvmbridge.errors import reason
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.jobs import JOBS

_MEMORY_BYTES = 8 << 30  # of address space on top of what the process has: a runaway child fails its own allocation
_TICK_S = 0.1
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> int:
    """Serve jobs until standard input ends or nothing comes for a long time."""
    # What TVM or a linker prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = _Lines(0)
    opening = json.loads(requests.wait_for_one())
    target = msgspec.convert(opening["target"], Target)
    kernels = {
        key: Kernel(name, tvm.ir.load_json(ir), key, frozenset(constants), 1)
        for key, (name, ir, constants) in opening["kernels"].items()
    }

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    answer({"ready": True})
    children: dict[int, _Child] = {}
    last_used = time.monotonic()
    while not requests.ended:
        ready, _, _ = select.select([0, *children], [], [], _TICK_S)
        if 0 in ready:
            for line in requests.read():
                child = _fork(json.loads(line), kernels, target)
                children[child.up] = child
        for up, child in list(children.items()):
            over = child.read() if up in ready else child.is_late()
            if over:
                del children[up]
                answer(child.end())
                last_used = time.monotonic()
        if not children and opening["idle_s"] is not None and time.monotonic() - last_used > opening["idle_s"]:
            break
    for child in children.values():
        child.end()
    return 0


class _Lines:
    """Whole lines of a file descriptor, without a buffer that `select` could not see."""

    def __init__(self, source: int) -> None:
        self._source, self._rest = source, b""
        self.ended = False

    def read(self) -> list[bytes]:
        """The lines that have come; waits where nothing has."""
        chunk = os.read(self._source, 1 << 20)
        self.ended = not chunk
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return lines

    def wait_for_one(self) -> bytes:
        """The next line, however long it is; nothing may have been sent after it."""
        while not self.ended:
            if lines := self.read():
                (line,) = lines
                return line
        raise SystemExit(0)


class _Child:
    """A forked child. `up` brings its lines: {"stage": …} as it goes on, {"result": …} at the end."""

    def __init__(self, request: dict[str, Any], pid: int, up: int) -> None:
        self._id, self._limits_s, self._pid, self.up = request["id"], request["limits_s"], pid, up
        self._lines = _Lines(up)
        self._message: dict[str, Any] = {"stage": None}
        self._result: dict[str, Any] | None = None
        self._late = False
        self._since = time.monotonic()

    def read(self) -> bool:
        """Take in what it says; whether that was all."""
        for line in self._lines.read():
            message = json.loads(line)
            if "result" in message:
                self._result = message["result"]
            else:
                self._message, self._since = message, time.monotonic()
        return self._lines.ended or self._result is not None

    def is_late(self) -> bool:
        """Whether its stage has lasted longer than it may."""
        limit_s = self._limits_s.get(self._message["stage"])
        self._late = limit_s is not None and time.monotonic() - self._since > limit_s
        return self._late

    def end(self) -> dict[str, Any]:
        """Kill it if it still lives, reap it, and make the answer."""
        os.kill(self._pid, signal.SIGKILL)  # a dead child stays there to be signalled until it is reaped
        _, status = os.waitpid(self._pid, 0)
        os.close(self.up)
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        return {"id": self._id, "result": self._result, "ended": "time-out" if self._late else ended, **self._message}


def _fork(request: dict[str, Any], kernels: dict[str, Kernel], target: Target) -> _Child:
    up_read, up_write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(up_read)
            _serve(request, kernels, target, up_write, parent)
        finally:
            os._exit(0)
    os.close(up_write)
    return _Child(request, pid, up_read)


def _serve(request: dict[str, Any], kernels: dict[str, Kernel], target: Target, up: int, parent: int) -> None:
    """In the child: do the job and say how it went."""

    def say(stage: str, **facts: Any) -> None:
        os.write(up, json.dumps({"stage": stage, **facts}).encode() + b"\n")

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody waits for it once the parent is dead
        if os.getppid() != parent:
            return
        with contextlib.suppress(OSError):  # not every system lets us say that this process is the first to go
            Path("/proc/self/oom_score_adj").write_text("1000")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
        result = JOBS[request["job"]](request["arguments"], kernels, target, say)
    except BaseException as exc:  # the parent gets to know of everything
        result = {"error": reason(exc)}
    _write_all(up, json.dumps({"result": result}).encode() + b"\n")


def _write_all(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


if __name__ == "__main__":
    sys.exit(main())
