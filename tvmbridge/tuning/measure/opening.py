"""Chooses the measurer for a target: on this machine or over RPC, compiling here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from tvmbridge.lowering import Kernel
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure import Measurer
from tvmbridge.tuning.measure.building import Builder, LocalBuilder
from tvmbridge.tuning.measure.cluster import ClusterBuilder
from tvmbridge.tuning.measure.forks import ForkServer, describe
from tvmbridge.tuning.measure.here import HereTimer
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.measure.overlapped import Defer, OverlappedMeasurer, Timer
from tvmbridge.tuning.measure.rpc import RpcTimer


def open_measurer(kernels: Sequence[Kernel], target: Target, seed: int, *, cluster: str | None = None) -> Measurer:
    """A measurer for candidates of these kernels, not yet entered.

    cluster: address of a dask scheduler whose workers compile, "tcp://host:8786"; None: this machine compiles.
    """
    if cluster is None and not isinstance(target.measure, RpcMeasure):
        return LocalMeasurer(kernels, target, seed)
    opening = describe(kernels, target)
    forks = ForkServer(opening, threads=target.cores)

    def parts(defer: Defer) -> tuple[Builder, Timer]:
        builder = LocalBuilder(target, forks, defer) if cluster is None else ClusterBuilder(cluster, opening, defer)
        timer = RpcTimer(target, forks, defer) if isinstance(target.measure, RpcMeasure) else HereTimer(forks, defer)
        return builder, timer

    return OverlappedMeasurer(target, seed, forks, parts)
