"""BuiltVariant: what a build hands to write_bundle for one target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmbridge.bundle.gpu_code import GpuBuild
from tvmbridge.bundle.manifest import Accuracy, Requires

if TYPE_CHECKING:
    from tvmbridge.targets import Target


@dataclass(frozen=True)
class BuiltVariant:
    """One target's compiled model.

    library: shared library on disk, read when the bundle is written.
    weights: in the order in which the library takes them; not copied: leave them unchanged until the bundle is written.
    runtime_libraries: TVM's runtime for the target, in the order to load it; empty to rely on an installed apache-tvm.
    tvm, tvm_ffi: versions that the library was built with.
    unverified_because: why accuracy is None.
    latency_us: median of one call on the machine it was verified on.
    emulated: whether that was under emulation.
    gpu: what the compilers say of its GPU code; None where it has none.
    """

    target: Target
    library: Path
    weights: tuple[np.ndarray[Any, Any], ...]
    requires: Requires
    tvm: str
    tvm_ffi: str
    runtime_libraries: tuple[Path, ...]
    kernels: int
    tuned_kernels: int
    accuracy: Accuracy | None = None
    unverified_because: str | None = None
    latency_us: float | None = None
    emulated: bool = False
    gpu: GpuBuild | None = None
