"""What runs in the workers of a dask cluster for `cluster`: a fork server, and the calls that hand it builds."""

from __future__ import annotations

import concurrent.futures
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
from distributed import Reschedule, Worker, WorkerPlugin, get_worker

from tvmbridge.tuning.measure.forks import ForkServer, JobEnd
from tvmbridge.version import __version__

_IDLE_S = 300.0  # a tuning run that was killed takes nothing back: what it has started here ends by itself
_STARTS = 3  # of the fork server, before a build counts as what ends it


class BuildPlugin(WorkerPlugin):
    """Keeps a fork server in each worker, from the first build on.

    opening: what `forks.describe` made. version: of the tvmbridge that asks.
    """

    def __init__(self, opening: dict[str, Any], version: str) -> None:
        self.version = version
        self._opening = opening

    def setup(self, worker: Worker) -> None:
        """When a worker gets the plugin."""
        self._lock = threading.Lock()
        self._forks: ForkServer | None = None
        self._over = False

    def teardown(self, worker: Worker) -> None:
        """When the tuning run is over, or the worker."""
        with self._lock:
            self._over = True
            self._stop()

    def run(self, arguments: dict[str, Any], limits_s: dict[str, float | None]) -> JobEnd:
        """Do a build and wait for it; the fork server is started again where it has ended."""
        for _ in range(_STARTS):
            ended: concurrent.futures.Future[JobEnd] = concurrent.futures.Future()
            with self._lock:
                if self._over:
                    raise Reschedule()  # this worker is leaving
                if self._forks is None:
                    forks = ForkServer(self._opening, idle_s=_IDLE_S)
                    forks.start()
                    self._forks = forks
                forks = self._forks
            forks.submit("build", arguments, limits_s, ended.set_result)
            end = ended.result()
            if end.result is not None or end.ended is not None:
                return end
            with self._lock:
                if self._over:
                    raise Reschedule()
                if self._forks is forks:
                    self._stop()
        return JobEnd(ended="the process that builds ended", stage="compiling")

    def _stop(self) -> None:
        if self._forks is not None:
            self._forks.stop()
            self._forks = None


def build_on_worker(plugin_name: str, arguments: dict[str, Any], limits_s: dict[str, float | None]) -> dict[str, Any]:
    """Compile a candidate on this worker: {"worker": its address, "end": fields of the JobEnd, "library": bytes}."""
    worker = get_worker()
    plugin = worker.plugins[plugin_name]
    assert isinstance(plugin, BuildPlugin)
    if plugin.version != __version__:
        end = JobEnd({"unable": f"it has tvmbridge {__version__}, this machine has {plugin.version}"})
        return {"worker": worker.address, "end": msgspec.to_builtins(end), "library": b""}
    with tempfile.TemporaryDirectory(prefix="tvmbridge-") as folder:
        library = Path(folder, "candidate.so")
        end = plugin.run({**arguments, "library": str(library)}, limits_s)
        built = library.read_bytes() if end.result is not None and "parameters" in end.result else b""
    return {"worker": worker.address, "end": msgspec.to_builtins(end), "library": built}
