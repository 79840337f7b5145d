"""The process that compiles and times candidates for `local`.

It imports TVM once and never runs a kernel itself, so that it can fork a child for each candidate: a child that
crashes, hangs or eats the memory costs that candidate and nothing else. (A process in which TVM has run a kernel has
TVM's threads, and a child forked from it would wait for them for ever.)

Protocol: one JSON object a line. In: {"kernels": {key: [name, ir, constants]}, "target", "threads", "rotated_bytes",
"folder"} once, then {"candidates": [[kernel key, template, config, best_us], …], "build_timeout_s", "run_timeout_s"}
per batch. Out: one {"index", "times_us", "error"} per candidate, in any order.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import select
import signal
import sys
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import msgspec
import tvm

from tvmbridge.host import detect_host
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Template, recorded_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.forked import Forked, adopt_orphans, end_orphans
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References
from tvmbridge.tuning.measure.trial import Trial
from tvmbridge.tuning.measure.turns import Queue, Turns

_TICK_MS = 50  # how late a timeout may be noticed


def main() -> int:
    """Serve batches until standard input ends."""
    # What TVM or a linker prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: _end_all())
    adopt_orphans()
    gc.disable()  # so that no child begins with a collection, which would copy the whole process
    requests = sys.stdin.buffer
    opening = json.loads(requests.readline())
    worker = _Worker(opening)
    answers.write(b'{"ready": true}\n')
    for line in requests:
        batch = json.loads(line)
        _Batch(batch, worker, answers).run()
    return 0


def _end_all() -> None:
    """End this process and all that descends from it: they are one process group."""
    os.killpg(0, signal.SIGKILL)


class _Worker:
    """What lasts from batch to batch."""

    def __init__(self, opening: dict[str, Any]) -> None:
        self.target = msgspec.convert(opening["target"], Target)
        self.kernels = {
            key: Kernel(name, tvm.ir.load_json(ir), key, frozenset(constants), 1)
            for key, (name, ir, constants) in opening["kernels"].items()
        }
        self.turns = Turns(detect_host().cores, opening["threads"])
        self.data = RandomData(opening["rotated_bytes"])
        self.references = References(Path(opening["folder"]))
        self.best_us: dict[str, float] = {}
        self._templates: dict[str, dict[str, Template]] = {}

    def template(self, key: str, name: str) -> Template:
        """One of the templates that take a kernel. What is found out and made for a kernel here, no child has to."""
        if key not in self._templates:
            kernel = self.kernels[key]
            self._templates[key] = {template.name: template for template in recorded_templates(kernel, self.target)}
            for parameter in kernel.function.params:
                self.data.of(str(parameter.dtype))
        return self._templates[key][name]


class _Batch:
    """Compiles and times the candidates of a batch."""

    def __init__(self, batch: dict[str, Any], worker: _Worker, answers: BinaryIO) -> None:
        self._worker, self._answers = worker, answers
        self._candidates = batch["candidates"]
        self._build_timeout_s, self._run_timeout_s = batch["build_timeout_s"], batch["run_timeout_s"]
        self._waiting = deque(range(len(self._candidates)))
        self._building: list[Forked] = []
        self._built: deque[Forked] = deque()
        self._running: Forked | None = None

    def run(self) -> None:
        """Answer for every candidate."""
        while self._waiting or self._building or self._built or self._running:
            self._start_timing()
            self._start_compiling()
            self._listen()

    def _queue(self) -> Queue:
        return Queue(len(self._waiting), len(self._building), len(self._built), self._running is not None)

    def _start_timing(self) -> None:
        if not self._worker.turns.may_time(self._queue()):
            return
        self._running = self._built.popleft()
        self._running.restart_clock()
        key, _, _, best_us = self._candidates[self._running.index]
        if best_us is not None:
            best_us = min(best_us, self._worker.best_us.get(key, best_us))
        self._running.tell({"best_us": best_us})

    def _start_compiling(self) -> None:
        worker = self._worker
        while self._waiting and len(self._building) < worker.turns.compilers(self._queue()):
            index = self._waiting.popleft()
            key, name, config, _ = self._candidates[index]
            trial = Trial(worker.kernels[key], worker.target, worker.template(key, name), config)
            self._building.append(Forked(index, functools.partial(trial.run, worker.data, worker.references)))

    def _listen(self) -> None:
        """Wait until a child says something or its time is up."""
        active = {child.up: child for child in [*self._building, *filter(None, [self._running])]}
        poller = select.poll()
        poller.register(0, 0)  # tells when standard input ends: who would read the answers has gone
        for descriptor in active:
            poller.register(descriptor, select.POLLIN)
        ended = {descriptor for descriptor, child in active.items() if child.has_ended}  # before what it said is heard
        ready = {descriptor for descriptor, _ in poller.poll(_TICK_MS)}
        if 0 in ready:
            _end_all()
        for descriptor, child in active.items():
            doing, limit_s = (
                ("running", self._run_timeout_s) if child is self._running else ("compiling", self._build_timeout_s)
            )
            if child.elapsed_s > limit_s:  # first: what it says after that comes too late
                self._finish(child, error=f"{doing} took over {limit_s:g} s")
            elif descriptor in ready:
                self._hear(child)
            elif descriptor in ended:
                self._finish(child)

    def _hear(self, child: Forked) -> None:
        messages = child.hear()
        if messages is None:
            self._finish(child)
            return
        for message in messages:
            if "built" in message:
                self._building.remove(child)
                self._built.append(child)
            else:
                self._finish(child, message["times_us"], message["error"])
                return

    def _finish(self, child: Forked, times_us: list[float] | None = None, error: str | None = None) -> None:
        """End a child and answer for it; without times or an error, its end is the error."""
        was = "running" if child is self._running else "compiling"
        ended = child.end()
        if child is self._running:
            self._running = None
        else:
            self._building.remove(child)
        end_orphans([other.pid for other in [*self._building, *self._built, *filter(None, [self._running])]])
        if times_us:
            key = self._candidates[child.index][0]
            self._worker.best_us[key] = min(median(times_us), self._worker.best_us.get(key, median(times_us)))
        elif error is None:
            error = f"{ended} while {was}"
        answer = {"index": child.index, "times_us": times_us or [], "error": error}
        self._answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
