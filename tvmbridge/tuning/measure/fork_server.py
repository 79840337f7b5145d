"""The process that forks a child for each job of `jobs`, and ends those that take too long.

It imports TVM once and never runs a kernel itself, so that its children start in milliseconds and in a clean state, as
those of `worker` do. A child that crashes, hangs or eats the memory costs its job and nothing else.

Protocol: one JSON object a line. In: {"kernels": {key: [name, ir, constants]}, "target", "architectures",
"rotated_bytes", "folder", "idle_s"} once, then {"id", "job", "arguments", "limits_s": {stage: seconds or null}} per
job. Out: {"ready": true} once, then the fields of a `forks.JobEnd` and the "id" per job. It ends with its standard
input, or when it has had nothing to do for `idle_s` seconds.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import tvm

from tvmbridge.errors import reason
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.forked import Forked, adopt_orphans, end_orphans
from tvmbridge.tuning.measure.jobs import JOBS
from tvmbridge.tuning.measure.on_device import Setting
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References

_TICK_S = 0.05  # how late a time-out may be noticed


def main() -> int:
    """Serve jobs until standard input ends or nothing comes for a long time."""
    # What TVM or a linker prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    adopt_orphans()
    gc.disable()  # so that no child begins with a collection, which would copy the whole process
    requests = _Requests()
    opening = json.loads(requests.wait_for_one())
    setting = read_setting(opening)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    answer({"ready": True})
    running: dict[int, _Job] = {}
    last_used = time.monotonic()
    while not requests.ended:
        ended = {descriptor for descriptor, job in running.items() if job.forked.has_ended}  # before it is heard out
        ready, _, _ = select.select([0, *running], [], [], _TICK_S)
        if 0 in ready:
            for line in requests.read():
                started = _Job(json.loads(line), setting)
                running[started.forked.up] = started
        for descriptor, job in list(running.items()):
            if job.hear() if descriptor in ready else descriptor in ended or job.is_late():
                del running[descriptor]
                answer(job.end())
                end_orphans([other.forked.pid for other in running.values()])
                last_used = time.monotonic()
        if not running and opening["idle_s"] is not None and time.monotonic() - last_used > opening["idle_s"]:
            break
    for job in running.values():
        job.end()
    return 0


def read_setting(opening: dict[str, Any]) -> Setting:
    """What `forks.describe` made, with the "folder" of the references."""
    return Setting(
        kernels={
            key: Kernel(name, tvm.ir.load_json(ir), key, frozenset(constants), 1)
            for key, (name, ir, constants) in opening["kernels"].items()
        },
        target=msgspec.convert(opening["target"], Target),
        architectures=tuple(opening["architectures"]),
        data=RandomData(opening["rotated_bytes"]),
        references=References(Path(opening["folder"])),
    )


class _Requests:
    """Whole lines of standard input, without a buffer that `select` could not see."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def read(self) -> list[bytes]:
        """The lines that have come; waits where nothing has."""
        more = os.read(0, 1 << 20)
        self.ended = not more
        *lines, self._rest = (self._rest + more).split(b"\n")
        return lines

    def wait_for_one(self) -> bytes:
        """The next line, however long it is; nothing may have been sent after it."""
        while not self.ended:
            if lines := self.read():
                (line,) = lines
                return line
        raise SystemExit(0)


class _Job:
    """A job and the child that does it. The child says {"stage": …} as it goes on, and {"result": …} at the end."""

    def __init__(self, request: dict[str, Any], setting: Setting) -> None:
        self._id, self._limits_s = request["id"], request["limits_s"]
        self._where: dict[str, Any] = {"stage": None}
        self._result: dict[str, Any] | None = None
        self._late = False
        _, prepare = JOBS[request["job"]]
        prepare(request["arguments"], setting)
        self.forked = Forked(self._id, functools.partial(_work, request, setting))

    def hear(self) -> bool:
        """Take in what the child says, as long as it is in time; whether that was all."""
        messages = self.forked.hear()
        for message in messages or ():
            if self.is_late():
                return True
            if "result" in message:
                self._result = message["result"]
            else:
                self._where = message
                self.forked.restart_clock()
        return messages is None or self._result is not None

    def is_late(self) -> bool:
        """Whether it has been longer at its stage than it may."""
        limit_s = self._limits_s.get(self._where["stage"])
        self._late = limit_s is not None and self.forked.elapsed_s > limit_s
        return self._late

    def end(self) -> dict[str, Any]:
        """End the child and make the answer."""
        return {
            "id": self._id,
            "result": self._result,
            "ended": self.forked.end(),
            "late": self._late,
            **self._where,
        }


def _work(request: dict[str, Any], setting: Setting, up: int, _down: int) -> None:
    """In the child: do the job and say how it went."""

    def write(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(up, data) :]

    do, _ = JOBS[request["job"]]
    try:
        result = do(request["arguments"], setting, lambda stage, **facts: write({"stage": stage, **facts}))
    except BaseException as exc:  # the parent gets to know of everything
        result = {"error": reason(exc)}
    write({"result": result})


if __name__ == "__main__":
    sys.exit(main())
