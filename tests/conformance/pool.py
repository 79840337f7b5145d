"""Cases in worker processes: a crash or a hang of one is its outcome, and a new worker goes on with the next."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.cases import Case, scored_cases
from tests.conformance.engines import CRASH, TIMEOUT, Result, run_on

_START_TIMEOUT_S = 300
Run = Callable[[str, Case], Result]


@dataclasses.dataclass(frozen=True)
class Task:
    """One case on one engine."""

    engine: str
    case: str


class _Worker:
    """A process that runs one task after another. deadline: of the one under way, by time.monotonic()."""

    def __init__(self, context: Any, folder: str, run: Run) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder, run), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.started = time.monotonic()
        self.deadline = self.started + _START_TIMEOUT_S

    def give(self, task: Task | None, timeout_s: float) -> None:
        self.task, self.started = task, time.monotonic()
        self.deadline = self.started + timeout_s
        self.pipe.send(task)

    def end(self) -> int | None:
        """Kill it; the exit code it had, if it was dead already."""
        self.process.join(1)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return code


def run_tasks(
    tasks: Sequence[Task],
    *,
    on_result: Callable[[Task, Result], None],
    jobs: int = 2,
    timeout_s: float = 180,
    run: Run = run_on,
) -> None:
    """Run all tasks, `jobs` at a time; on_result is called for each, in the order in which they end.

    run: what a worker does; a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conformance.preload"])
    waiting = deque(tasks)
    with tempfile.TemporaryDirectory(prefix="tvmbridge-conformance-") as folder:
        workers = [_Worker(context, folder, run) for _ in range(min(jobs, len(tasks)))]
        try:
            while workers:
                left = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
                ready = multiprocessing.connection.wait([worker.pipe for worker in workers], left)
                for worker in list(workers):
                    if worker.pipe in ready:
                        alive = _take(worker, on_result)
                    elif time.monotonic() > worker.deadline:
                        worker.end()
                        _report(worker, TIMEOUT, f"no result after {timeout_s:.0f} s", on_result)
                        alive = False
                    else:
                        continue
                    if alive and waiting:
                        worker.give(waiting.popleft(), timeout_s)
                        continue
                    if alive:
                        worker.end()
                    workers.remove(worker)
                    if waiting and not alive:
                        workers.append(_Worker(context, folder, run))
        finally:
            for worker in workers:
                worker.end()


def _take(worker: _Worker, on_result: Callable[[Task, Result], None]) -> bool:
    """Hand on what a worker sent; whether it lives. The first that it sends is that it is ready."""
    try:
        result = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        code = worker.end() or 0
        _report(worker, CRASH, signal.Signals(-code).name if code < 0 else f"exit status {code}", on_result)
        return False
    if worker.task is not None:
        on_result(worker.task, result)
    return True


def _report(worker: _Worker, outcome: str, why: str, on_result: Callable[[Task, Result], None]) -> None:
    if worker.task is None:
        raise RuntimeError(f"a worker of the conformance run does not start: {why}")
    on_result(worker.task, Result(worker.task.case, outcome, why, time.monotonic() - worker.started))


def _work(pipe: Any, folder: str, run: Run) -> None:
    """The life of a worker."""
    # What the engines and the suite print is nobody's; the suite keeps data of the light networks in ONNX_HOME.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    own = tempfile.mkdtemp(dir=folder)
    os.environ |= {"ONNX_HOME": own, "TVMBRIDGE_CACHE": os.path.join(own, "cache"), "TMPDIR": own}
    tempfile.tempdir = own
    import tvmbridge.backend  # noqa: F401 -- seconds, which are not the first case's

    cases = scored_cases()
    pipe.send(None)
    while (task := pipe.recv()) is not None:
        pipe.send(run(task.engine, cases[task.case]))
