"""The process that times libraries on this machine's GPU, one after the other, for `gpu`.

It imports TVM once and never touches the GPU itself: what is forked from a process that has could not use it. Its child
does, and starts CUDA once for many candidates, as that takes longer than a trial. Where the child crashes, hangs or
has met an error of CUDA, which may stay with a process for good, the next candidate gets a new one.

Protocol: one JSON object a line. In: what `forks.describe` made, with "folder", once; then {"kernel", "template",
"config", "library", "parameters", "best_us", "limit_s"} per candidate. Out: {"ready": true} once, then {"times_us",
"error"} per candidate.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import tvm

from tvmbridge.tuning.measure.fork_server import read_setting
from tvmbridge.tuning.measure.forked import Forked
from tvmbridge.tuning.measure.on_device import (
    Setting,
    check_on_device,
    find_trial,
    place_here,
    random_arrays,
    time_on_device,
)
from tvmbridge.tuning.measure.trial import TrialError, in_words

_TICK_S = 0.05  # how late a time-out may be noticed


def main() -> int:
    """Serve candidates until standard input ends."""
    # What TVM or a compiler prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    gc.disable()  # so that no child begins with a collection, which would copy the whole process
    requests = sys.stdin.buffer
    runner = _Runner(read_setting(json.loads(requests.readline())))
    answers.write(b'{"ready": true}\n')
    for line in requests:
        answers.write(json.dumps(runner.answer(json.loads(line))).encode() + b"\n")
    runner.end()
    return 0


class _Runner:
    """The child, which is made when it is first needed, and again when it was lost."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._child: Forked | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The times of one candidate, or its error."""
        for parameter in self._setting.kernels[request["kernel"]].function.params:
            self._setting.data.of(str(parameter.dtype))  # once for all children
        child = self._child = self._child or Forked(0, functools.partial(_serve, self._setting), limits_memory=False)
        child.tell(request)
        child.restart_clock()
        while child.elapsed_s < request["limit_s"]:
            ended = child.has_ended  # before what it said is heard
            ready, _, _ = select.select([child.up], [], [], _TICK_S)
            messages = child.hear() if ready else []
            if messages is None or (ended and not messages):
                return {"times_us": [], "error": f"{self.end()} while running"}
            for message in messages:
                if message.pop("lost"):
                    self.end()
                return message
        self.end()
        return {"times_us": [], "error": f"running took over {request['limit_s']:g} s"}

    def end(self) -> str:
        """End the child, where there is one; what ended it, in words."""
        child, self._child = self._child, None
        return child.end() if child is not None else ""


def _serve(setting: Setting, up: int, down: int) -> None:
    """In the child: answer for each line of `down` with one of {"times_us", "error", "lost": whether it must end}."""
    place = place_here()
    with os.fdopen(down, "rb") as requests:
        for line in requests:
            request = json.loads(line)
            try:
                trial = find_trial(request, setting)
                library = place.load(Path(request["library"]))
                tensors = [tvm.runtime.tensor(array, place.device) for array in random_arrays(request["parameters"])]
                times_us = time_on_device(library, place, tensors, request["best_us"])
                check_on_device(trial, library, place, setting, times_us, request["best_us"])
                said: dict[str, Any] = {"times_us": times_us, "error": None, "lost": False}
            except TrialError as exc:
                said = {"times_us": [], "error": str(exc), "lost": False}
            except BaseException as exc:  # whatever it was, this candidate failed, and its record says why
                said = {"times_us": [], "error": in_words("failed while running", exc), "lost": True}
            os.write(up, json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
