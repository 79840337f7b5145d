"""Starts a `fork_server` and hands it jobs; however it ends, every job is answered."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec
import tvm

from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import TuningError
from tvmbridge.host import last_level_cache_bytes
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.operands import rotated_bytes


class JobEnd(msgspec.Struct, frozen=True):
    """How a job ended.

    result: what it returned; None where it did not come to that. ended: then, what ended its process, in words; None
    where the fork server itself is gone. late: whether it took too long. stage: what it was doing. device: where.
    """

    result: dict[str, Any] | None = None
    ended: str | None = None
    late: bool = False
    stage: str | None = None
    device: str | None = None


def describe(kernels: Sequence[Kernel], target: Target) -> dict[str, Any]:
    """What a fork server has to know, as plain values that can be sent anywhere."""
    return {
        "target": msgspec.to_builtins(target),
        "rotated_bytes": rotated_bytes(kernels, last_level_cache_bytes()),
        "kernels": {k.key: [k.name, tvm.ir.save_json(k.function), sorted(k.constants)] for k in kernels},
    }


class ForkServer:
    """A running fork server. `submit` may be called from any thread.

    opening: what `describe` made. threads: that a kernel runs on, where it is run here. idle_s: after so long without
    a job the process ends by itself; None: never.
    """

    def __init__(self, opening: dict[str, Any], *, threads: int = 1, idle_s: float | None = None) -> None:
        self._opening = {**opening, "idle_s": idle_s}
        self._threads = threads
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[JobEnd], None]] = {}
        self._jobs = 0
        self._gone = False

    def start(self) -> None:
        """Start the process and wait until it is ready; TuningError where it cannot start."""
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the process lives
        self._folder = tempfile.TemporaryDirectory(prefix="tvmbridge-measure-")
        self._process = subprocess.Popen(
            child_command("tvmbridge.tuning.measure.fork_server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            # Bound to one CPU, a kernel would wait there for whoever else runs on it, as no session's call has to.
            env=child_environment(TVM_NUM_THREADS=str(self._threads), TVM_BIND_THREADS="0"),
            start_new_session=True,  # Ctrl-C is for the parent, which ends the process
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(OSError):  # it has ended already: what it did not answer says so
                self._process.stdin.write(json.dumps({**self._opening, "folder": self._folder.name}).encode() + b"\n")
                self._process.stdin.flush()
            if not self._process.stdout.readline():
                raise self.error()
            self._reader.start()
        except BaseException:
            self.stop()
            raise

    def submit(
        self, job: str, arguments: dict[str, Any], limits_s: dict[str, float | None], on_end: Callable[[JobEnd], None]
    ) -> None:
        """Start a job. `on_end` is called once, from another thread, however the job ends.

        limits_s: how long each stage of it may last, in seconds.
        """
        with self._lock:
            if not self._gone:
                self._jobs += 1
                self._waiting[self._jobs] = on_end
                request = {"id": self._jobs, "job": job, "arguments": arguments, "limits_s": limits_s}
                assert self._process.stdin is not None
                with contextlib.suppress(OSError):  # it has ended: the reader says so to all who wait
                    self._process.stdin.write(json.dumps(request).encode() + b"\n")
                    self._process.stdin.flush()
                return
        on_end(JobEnd())

    def stop(self) -> None:
        """End the process and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._reader.is_alive():
            self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._printed):
            with contextlib.suppress(OSError):  # what could not be written any more
                if stream is not None:
                    stream.close()
        self._folder.cleanup()

    def error(self) -> TuningError:
        """The error for a process that has ended, with the last thing it printed."""
        status = self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        return TuningError(
            f"the process that builds and measures ended with status {status}{last}",
            hint="run the same command again: it resumes",
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._lock:
                on_end = self._waiting.pop(answer["id"])
            on_end(msgspec.convert(answer, JobEnd))
        with self._lock:
            self._gone = True
            left, self._waiting = list(self._waiting.values()), {}
        for on_end in left:
            on_end(JobEnd())
