"""Compiles candidates on the workers of a dask cluster, which brings their libraries back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.metadata
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tvmbridge.errors import TuningError, reason
from tvmbridge.tuning.measure.building import Built, build_arguments, build_limits, read_build
from tvmbridge.tuning.measure.forks import JobEnd
from tvmbridge.tuning.measure.overlapped import Defer
from tvmbridge.tuning.tasks import Candidate
from tvmbridge.version import __version__

CONNECT_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 60.0  # workers import TVM meanwhile
NO_WORKER_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
_CENSUS_EVERY_S = 1.0

_Result = TypeVar("_Result")


class ClusterBuilder:
    """Compiles on whatever workers the scheduler has, each in forked processes as the local builder does.

    scheduler: "tcp://host:8786". opening: what `forks.describe` made.
    slots: twice the threads that the workers had at the last census, so that none waits for its next candidate.
    """

    def __init__(self, scheduler: str, opening: dict[str, Any], defer: Defer) -> None:
        self.slots = 1
        self._scheduler, self._opening, self._defer = scheduler, opening, defer
        self._name = f"tvmbridge-{uuid.uuid4().hex}"
        self._futures: dict[int, Any] = {}
        self._builds = 0
        self._had_worker = 0.0
        self._stopping = threading.Event()

    def start(self) -> None:
        """TuningError where dask is missing, no scheduler answers, or a worker is not fit to build for us."""
        try:
            import distributed

            from tvmbridge.tuning.measure.cluster_worker import BuildPlugin, build_on_worker
        except ImportError as exc:
            raise TuningError(
                f"compiling on a cluster needs dask ({exc})", hint="pip install 'tvmbridge[cluster]'"
            ) from exc
        self._build_on_worker = build_on_worker
        self._killed_worker = distributed.KilledWorker
        try:
            self._client = distributed.Client(self._scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError) as exc:
            raise TuningError(
                f"no dask scheduler answers at {self._scheduler} ({reason(exc)})",
                hint="start one with `dask scheduler`, and give the address that it prints",
            ) from exc
        try:
            self._prepare(BuildPlugin(self._opening, __version__))
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._take_census, daemon=True).start()

    def stop(self) -> None:
        """End what runs for us on the workers, and the connection."""
        self._stopping.set()
        for call in (lambda: self._client.unregister_worker_plugin(self._name), self._client.close):
            with contextlib.suppress(Exception):  # a scheduler that is gone has nothing more to end
                _within(_CLOSE_TIMEOUT_S, call)

    def build(self, candidate: Candidate, library: Path, on_built: Callable[[Built], None]) -> None:
        """Begin to compile a candidate on some worker."""
        self._builds += 1
        number = self._builds
        if not self._futures:
            self._had_worker = time.monotonic()
        self._futures[number] = future = self._client.submit(
            self._build_on_worker,
            self._name,
            build_arguments(candidate, library),
            build_limits(),
            key=f"{self._name}-{number}",
            pure=False,
        )

        def finish() -> None:
            del self._futures[number]
            on_built(self._read(future, candidate, library))

        future.add_done_callback(lambda _: self._defer(finish))

    def check(self) -> None:
        """TuningError where no worker has been there for a long time."""
        if self._futures and time.monotonic() - self._had_worker > NO_WORKER_S:
            raise TuningError(
                f"the dask scheduler at {self._scheduler} has had no worker for {NO_WORKER_S:g} s",
                hint=f"start workers with `dask worker {self._scheduler}`, and run the same command again: it resumes",
            )

    def _prepare(self, plugin: Any) -> None:
        """Look at the workers, and give them what they need to build for us."""
        try:
            found = _within(ANSWER_TIMEOUT_S, lambda: self._client.run(_make_census(), on_error="return"))
            if not found:
                raise TuningError(
                    f"the dask scheduler at {self._scheduler} has no workers",
                    hint=f"start some with `dask worker {self._scheduler}`",
                )
            wanted = {"tvmbridge": __version__, "apache-tvm": importlib.metadata.version("apache-tvm")}
            for worker, versions in found.items():
                if versions != wanted:
                    raise _unlike(worker, versions, wanted)
            _within(ANSWER_TIMEOUT_S, lambda: self._client.register_plugin(plugin, name=self._name))
            self._count(_within(ANSWER_TIMEOUT_S, self._client.nthreads))
        except TuningError:
            raise
        except Exception as exc:  # of dask's, or of a worker's
            raise TuningError(
                f"the workers of the dask scheduler at {self._scheduler} cannot be prepared: {reason(exc)}"
            ) from exc

    def _take_census(self) -> None:
        """In a thread, as it may have to wait: who is there."""
        while not self._stopping.wait(_CENSUS_EVERY_S):
            with contextlib.suppress(Exception):  # no answer is no worker, for a while: `check` knows how long
                self._defer(functools.partial(self._count, self._client.nthreads()))

    def _count(self, threads: dict[str, int]) -> None:
        self.slots = max(1, 2 * sum(threads.values()))
        if threads:
            self._had_worker = time.monotonic()

    def _read(self, future: Any, candidate: Candidate, library: Path) -> Built:
        if future.status == "cancelled":
            raise TuningError(
                f"the dask scheduler at {self._scheduler} is gone", hint="run the same command again: it resumes"
            )
        if future.status == "error":
            exc = future.exception()
            if isinstance(exc, self._killed_worker):
                return Built(candidate, library, [], "every dask worker that tried to compile it was lost")
            raise TuningError(f"a worker of the dask scheduler at {self._scheduler} failed: {reason(exc)}") from exc
        result = future.result()
        library.write_bytes(result["library"])
        end = msgspec.convert(result["end"], JobEnd)
        return read_build(end, candidate, library, f"the dask worker {result['worker']}")


def _make_census() -> Callable[[], dict[str, str | None]]:
    """What asks a worker for its versions. A function within one travels as code: a worker need not have ours."""

    def versions() -> dict[str, str | None]:
        import contextlib
        import importlib.metadata

        found: dict[str, str | None] = {"tvmbridge": None, "apache-tvm": None}
        with contextlib.suppress(ImportError):
            from tvmbridge.version import __version__

            found["tvmbridge"] = __version__
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["apache-tvm"] = importlib.metadata.version("apache-tvm")
        return found

    return versions


def _unlike(worker: str, versions: Any, wanted: dict[str, str]) -> TuningError:
    if isinstance(versions, BaseException):
        return TuningError(f"the dask worker {worker} cannot say what it has installed: {reason(versions)}")
    has = " and ".join(f"{name} {version}" if version else f"no {name}" for name, version in versions.items())
    return TuningError(
        f"the dask worker {worker} has {has}; this machine has "
        + " and ".join(f"{name} {version}" for name, version in wanted.items()),
        hint=f"on the worker: pip install 'tvmbridge[cluster]=={wanted['tvmbridge']}'",
    )


def _within(limit_s: float, call: Callable[[], _Result]) -> _Result:
    """call(), in a thread that is left behind where it takes longer: most calls of dask wait for ever."""
    done: concurrent.futures.Future[_Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as exc:
            done.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return done.result(limit_s)
