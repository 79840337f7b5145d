"""Chooses the measurer for a target: on this machine or over RPC, compiling here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from tvmbridge.host import detect_host
from tvmbridge.lowering import Kernel
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure import Measurer
from tvmbridge.tuning.measure.building import Builder, LocalBuilder
from tvmbridge.tuning.measure.cluster import ClusterBuilder
from tvmbridge.tuning.measure.forks import ForkServer, describe
from tvmbridge.tuning.measure.gpu import GpuTimer
from tvmbridge.tuning.measure.here import HereTimer
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.measure.overlapped import Defer, OverlappedMeasurer, Timer
from tvmbridge.tuning.measure.rpc import RpcTimer


def open_measurer(kernels: Sequence[Kernel], target: Target, seed: int, *, cluster: str | None = None) -> Measurer:
    """A measurer for candidates of these kernels, not yet entered.

    cluster: address of a dask scheduler whose workers compile, "tcp://host:8786"; None: this machine compiles.
    """
    elsewhere = isinstance(target.measure, RpcMeasure)
    if cluster is None and not elsewhere and target.kind != "cuda":
        return LocalMeasurer(kernels, target, seed)
    opening = describe(kernels, target, target.architectures if elsewhere else _architectures_here(target))
    forks = ForkServer(opening, threads=target.cores)

    def parts(defer: Defer) -> tuple[Builder, Timer]:
        builder = LocalBuilder(target, forks, defer) if cluster is None else ClusterBuilder(cluster, opening, defer)
        if elsewhere:
            return builder, RpcTimer(target, forks, defer)
        return builder, GpuTimer(opening, defer) if target.kind == "cuda" else HereTimer(forks, defer)

    return OverlappedMeasurer(target, seed, forks, parts)


def _architectures_here(target: Target) -> tuple[str, ...]:
    """Of the target's architectures the one whose code the GPU of this machine would run; none for a CPU."""
    gpus = detect_host(gpus=True).gpus if target.kind == "cuda" else ()
    return tuple(each for gpu in gpus[:1] for each in target.architectures if gpu.runs(each))[-1:]
