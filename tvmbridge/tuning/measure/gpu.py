"""Times libraries on this machine's GPU, one after the other, through a process that outlives their crashes."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from tvmbridge.child import child_command, child_environment
from tvmbridge.codegen.cuda import cuda_runtime_library
from tvmbridge.cuda_runtime import cudart_folder, install_hint, load_cudart, needed_cudart
from tvmbridge.errors import TuningError
from tvmbridge.tuning.measure.building import Built, name_candidate
from tvmbridge.tuning.measure.overlapped import Defer, Timed

RUN_TIMEOUT_S = 30.0  # starting CUDA and compiling the untuned schedule are in it


class GpuTimer:
    """Times libraries that were compiled elsewhere on GPU 0. opening: what `forks.describe` made."""

    def __init__(self, opening: Mapping[str, Any], defer: Defer) -> None:
        self.devices = 1
        self._opening, self._defer = opening, defer
        self._waiting: collections.deque[tuple[Built, float | None, Callable[[Timed], None]]] = collections.deque()
        self._running = False
        self._open = contextlib.ExitStack()

    def start(self) -> None:
        """Start the process. TuningError where it does not start, or cannot use a GPU."""
        with contextlib.ExitStack() as opening:
            folder = opening.enter_context(tempfile.TemporaryDirectory(prefix="tvmbridge-measure-"))
            self._printed: IO[bytes] = opening.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                child_command("tvmbridge.tuning.measure.gpu_server"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env=child_environment(**_driver_path()),
                start_new_session=True,  # Ctrl-C is for the parent, which ends the process
            )
            opening.callback(self._end)
            self._send({**self._opening, "folder": folder})
            self._receive()
            self._open = opening.pop_all()

    def stop(self) -> None:
        """End the process and its child."""
        self._open.close()

    def time(self, built: Built, best_us: float | None, on_timed: Callable[[Timed], None]) -> None:
        """Line a library up for its turn."""
        self._waiting.append((built, best_us, on_timed))
        self._next()

    def check(self) -> None:
        """Nothing to find out: a process that ends is noticed where its answer is waited for."""

    def _next(self) -> None:
        if self._running or not self._waiting:
            return
        built, best_us, on_timed = self._waiting.popleft()
        self._running = True
        request = {
            **name_candidate(built.candidate),
            "library": str(built.library),
            "parameters": built.parameters,
            "best_us": best_us,
            "limit_s": RUN_TIMEOUT_S,
        }

        def ask() -> None:
            try:
                self._send(request)
                timed = Timed(**self._receive())
            except TuningError as exc:
                problem = exc  # `exc` itself ends with this clause
                self._defer(lambda: _raise(problem))
            else:
                self._defer(lambda: finish(timed))

        def finish(timed: Timed) -> None:
            self._running = False
            on_timed(Timed(tuple(timed.times_us), timed.error))
            self._next()

        threading.Thread(target=ask, daemon=True).start()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise self._gone() from exc

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> TuningError:
        """The error for a process that has ended, with the last thing it printed."""
        status = self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        return TuningError(
            f"the process that measures on the GPU ended with status {status}{last}",
            hint="run the same command again: it resumes",
        )

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more
                if stream is not None:
                    stream.close()


def _driver_path() -> dict[str, str]:
    """What the process's environment needs for TVM to load its CUDA runtime; TuningError where that cannot load."""
    cudart = needed_cudart(cuda_runtime_library().read_bytes())
    if cudart is None:
        return {}
    if not load_cudart(cudart):
        raise TuningError(f"nothing can be measured on the GPU without NVIDIA's {cudart}", hint=install_hint(cudart))
    search = [os.environ.get("LD_LIBRARY_PATH"), cudart_folder(cudart)]
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, search))}


def _raise(problem: TuningError) -> None:
    raise problem
