"""Times candidates on this machine, through a worker process that outlives their crashes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import IO

import msgspec
import tvm

from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import TuningError
from tvmbridge.host import last_level_cache_bytes
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.operands import rotated_bytes
from tvmbridge.tuning.record import TrialRecord, now_utc
from tvmbridge.tuning.tasks import Candidate

BUILD_TIMEOUT_S = 30.0
RUN_TIMEOUT_S = 20.0


class LocalMeasurer:
    """A context manager around the worker process; see `worker` for how it measures.

    kernels: all that the network has to tune; whether their weights stay in the cache follows from their sizes.
    threads: that a kernel runs on; None: as many as the target has cores.
    """

    def __init__(self, kernels: Sequence[Kernel], target: Target, seed: int, *, threads: int | None = None) -> None:
        self.devices = 1
        self._target, self._seed = target, seed
        self._threads = target.cores if threads is None else threads
        self._opening = {
            "target": msgspec.to_builtins(target),
            "threads": self._threads,
            "rotated_bytes": rotated_bytes(kernels, last_level_cache_bytes()),
            "kernels": {k.key: [k.name, tvm.ir.save_json(k.function), sorted(k.constants)] for k in kernels},
        }
        self._worker: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> LocalMeasurer:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def measure(self, candidates: Sequence[tuple[Candidate, float | None]]) -> list[TrialRecord]:
        """Time a batch of (candidate, best time known of its kernel in microseconds); one record each, in order.

        A candidate that crashes, hangs or cannot be compiled has an error in its record. TuningError where the worker
        itself cannot be kept alive.
        """
        request = {
            "candidates": [[c.kernel.key, c.template.name, c.config, best_us] for c, best_us in candidates],
            "build_timeout_s": BUILD_TIMEOUT_S,
            "run_timeout_s": RUN_TIMEOUT_S,
        }
        self._send(request)
        results: dict[int, dict] = {}
        while len(results) < len(candidates):
            answer = self._receive()
            results[answer["index"]] = answer
        when = now_utc()
        return [
            candidate.record(
                self._target, results[index]["times_us"], results[index]["error"], seed=self._seed, when=when
            )
            for index, (candidate, _) in enumerate(candidates)
        ]

    def _start(self) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the worker lives
        self._folder = tempfile.TemporaryDirectory(prefix="tvmbridge-measure-")
        self._worker = subprocess.Popen(
            child_command("tvmbridge.tuning.measure.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            # Bound to one CPU, a kernel would wait there for whoever else runs on it, as no session's call has to.
            env=child_environment(TVM_NUM_THREADS=str(self._threads), TVM_BIND_THREADS="0"),
            start_new_session=True,  # Ctrl-C is for the parent, which ends the worker
        )
        self._send({**self._opening, "folder": self._folder.name})
        self._receive()

    def _stop(self) -> None:
        if self._worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)  # its forked children with it
            self._worker.communicate()
            self._worker = None
        if self._printed is not None:
            self._printed.close()
            self._printed = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _send(self, message: dict) -> None:
        assert self._worker is not None and self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(message).encode() + b"\n")
            self._worker.stdin.flush()
        except OSError as exc:
            raise self._gone() from exc

    def _receive(self) -> dict:
        assert self._worker is not None and self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            raise self._gone()
        return json.loads(line)

    def _gone(self) -> TuningError:
        """The error for a worker that has ended, with the last thing it printed."""
        assert self._worker is not None and self._printed is not None
        status = self._worker.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        return TuningError(
            f"the measuring process ended with status {status}{last}", hint="run the same command again: it resumes"
        )
