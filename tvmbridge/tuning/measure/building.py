"""Builders: each compiles candidates somewhere, side by side, into shared libraries that a device can load.

A linked library needs no compiler where it is loaded; of an object file or an archive of them, TVM's RPC server would
make one with the C compiler that a device may not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tvmbridge.codegen.cuda import require_nvcc
from tvmbridge.codegen.link import find_linker
from tvmbridge.errors import TuningError
from tvmbridge.host import detect_host
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.forks import ForkServer, JobEnd
from tvmbridge.tuning.tasks import Candidate

BUILD_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Built:
    """A candidate's library, and the shapes and dtypes of what it is called with; or why there is none."""

    candidate: Candidate
    library: Path
    parameters: list[tuple[list[int], str]]
    error: str | None = None


class Builder(Protocol):
    """Compiles candidates; between `start` and `stop`, processes and connections are open.

    slots: how many candidates it should be given at a time.
    """

    slots: int

    def start(self) -> None:
        """TuningError or ToolchainError where nothing can be built."""
        ...

    def stop(self) -> None:
        """End everything that `start` and `build` have started."""
        ...

    def build(self, candidate: Candidate, library: Path, on_built: Callable[[Built], None]) -> None:
        """Begin to compile a candidate; `on_built` is called once, within `check` or `Events.handle`."""
        ...

    def check(self) -> None:
        """TuningError where builds wait and nothing is left that could do them. Called every second or so."""
        ...


class LocalBuilder:
    """Compiles on all cores of this machine."""

    def __init__(self, target: Target, forks: ForkServer, defer: Callable[[Callable[[], None]], None]) -> None:
        cores = detect_host().cores
        # Who asks a GPU for the next call has a core of its own.
        self.slots = max(1, cores - 1) if target.kind == "cuda" and target.measure == "local" else cores
        self._target, self._forks, self._defer = target, forks, defer

    def start(self) -> None:
        """ToolchainError where a linker is missing, or nvcc for a cuda target."""
        find_linker(self._target.machine)
        if self._target.kind == "cuda":
            require_nvcc()

    def stop(self) -> None:
        """Nothing: the fork server is its owner's."""

    def build(self, candidate: Candidate, library: Path, on_built: Callable[[Built], None]) -> None:
        """Begin to compile a candidate."""

        def finish(end: JobEnd) -> None:
            if end.ended is None and end.result is None:
                raise self._forks.error()
            on_built(read_build(end, candidate, library, "this machine"))

        self._forks.submit(
            "build", build_arguments(candidate, library), build_limits(), lambda end: self._defer(lambda: finish(end))
        )

    def check(self) -> None:
        """Nothing to find out: a fork server that ends answers all that wait."""


def build_arguments(candidate: Candidate, library: Path) -> dict[str, Any]:
    """What the job `build` is given."""
    return {**name_candidate(candidate), "library": str(library)}


def name_candidate(candidate: Candidate) -> dict[str, Any]:
    """What tells a fork server which one it is."""
    return {"kernel": candidate.kernel.key, "template": candidate.template.name, "config": candidate.config}


def build_limits() -> dict[str, float | None]:
    """Of the job `build`."""
    return {"compiling": BUILD_TIMEOUT_S}


def read_build(end: JobEnd, candidate: Candidate, library: Path, where: str) -> Built:
    """What a `build` job came to. TuningError where nothing can be built there."""
    if end.result is None:
        late = f"compiling took over {BUILD_TIMEOUT_S:g} s"
        return Built(candidate, library, [], late if end.late else f"{end.ended} while compiling")
    if unable := end.result.get("unable"):
        raise TuningError(f"{where} cannot build candidates: {unable}")
    return Built(candidate, library, end.result.get("parameters", []), end.result.get("error"))
