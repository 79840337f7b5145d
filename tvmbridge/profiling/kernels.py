"""The kernels of a built network: times in the network and alone, work, and the rate at which they do it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import tvm

from tvmbridge.codegen import KernelPlan
from tvmbridge.errors import is_interrupt
from tvmbridge.profiling.peak import Peak, measure_peak
from tvmbridge.schedules import FALLBACK, Config
from tvmbridge.targets import Target
from tvmbridge.tuning.measure import LocalMeasurer
from tvmbridge.tuning.tasks import Candidate, is_static

_BATCH = 8


@dataclasses.dataclass(frozen=True)
class KernelProfile:
    """One kernel of a network. Times are medians of one call in microseconds.

    us: in the network, the mean of its calls there. alone_us: by itself, over and over, with warm caches; None where
    it could not be timed so. flops: float additions, multiplications, divisions and comparisons of one call; None
    where they cannot be counted. size_bytes: of its inputs and outputs, each once.
    """

    name: str
    key: str
    template: str
    config: Config
    tuned: bool
    calls: int
    us: float
    alone_us: float | None
    flops: float | None
    size_bytes: int

    @property
    def total_us(self) -> float:
        """Of all calls in one run of the network."""
        return self.us * self.calls

    @property
    def gflops(self) -> float | None:
        """Rate in the network, 1e9 operations a second."""
        return self.flops / self.us / 1e3 if self.flops is not None and self.us else None

    @property
    def gb_per_s(self) -> float | None:
        """Rate in the network, 1e9 bytes a second."""
        return self.size_bytes / self.us / 1e3 if self.us else None

    @property
    def is_fallback(self) -> bool:
        """Whether no template of its own fits it."""
        return self.template == FALLBACK

    def bound(self, peak: Peak) -> str:
        """Which of the two takes longer at peak rate: "compute" or "memory"."""
        return "compute" if (self.flops or 0.0) / peak.gflops > self.size_bytes / peak.gb_per_s else "memory"

    def of_peak(self, peak: Peak) -> float | None:
        """The rate that bounds it as a part of the peak; above 1 where caches give more than memory could."""
        rate = self.gflops if self.bound(peak) == "compute" else self.gb_per_s
        best = peak.gflops if self.bound(peak) == "compute" else peak.gb_per_s
        return rate / best if rate is not None else None


@dataclasses.dataclass(frozen=True)
class NetworkProfile:
    """The kernels of a network on `threads` threads, the one that takes the most time first."""

    threads: int
    peak: Peak
    kernels: tuple[KernelProfile, ...]

    @property
    def total_us(self) -> float:
        """All kernels of one run."""
        return sum(kernel.total_us for kernel in self.kernels)

    @property
    def alone_us(self) -> float:
        """All kernels of one run, each at the time it takes alone, or in the network where that is not known."""
        return sum((k.us if k.alone_us is None else k.alone_us) * k.calls for k in self.kernels)

    @property
    def fallback(self) -> tuple[KernelProfile, ...]:
        """The kernels that no template of their own fits."""
        return tuple(kernel for kernel in self.kernels if kernel.is_fallback)

    def share(self, kernel: KernelProfile) -> float:
        """What part of all kernels' time is this one's."""
        return kernel.total_us / self.total_us if self.total_us else 0.0


def profile_kernels(
    plans: Sequence[KernelPlan],
    kernel_us: Mapping[str, float],
    target: Target,
    *,
    threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> NetworkProfile:
    """Profile the kernels of a variant that was built and timed on this machine.

    plans: what the build decided. kernel_us: what each took of one run (`VariantCheck.kernel_us`). on_progress: called
    with the number of kernels that were timed alone, and of all. TuningError where measuring fails altogether.
    """
    peak = measure_peak(target, threads)
    alone = _time_alone([plan for plan in plans if is_static(plan.kernel)], target, threads, on_progress)
    kernels = [
        KernelProfile(
            name=plan.kernel.name,
            key=plan.kernel.key,
            template=plan.template.name,
            config=plan.config,
            tuned=plan.record is not None,
            calls=plan.kernel.calls,
            us=kernel_us.get(plan.symbol, 0.0) / plan.kernel.calls,
            alone_us=alone.get(plan.kernel.key),
            flops=count_flops(plan.kernel.function),
            size_bytes=count_bytes(plan.kernel.function),
        )
        for plan in plans
    ]
    return NetworkProfile(threads, peak, tuple(sorted(kernels, key=lambda kernel: -kernel.total_us)))


def count_flops(function: tvm.tirx.PrimFunc) -> float | None:
    """Operations of one call of an unscheduled function; None where TVM cannot count them."""
    try:
        flops = tvm.s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": function}))
    except Exception as exc:  # TVM raises many kinds: unknown extents, opaque blocks
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        return None
    return flops


def count_bytes(function: tvm.tirx.PrimFunc) -> int:
    """Bytes of the parameters of one call, each once; axes of unknown extent count as 1."""
    return sum(
        math.prod(int(axis) if isinstance(axis, tvm.tirx.IntImm) else 1 for axis in parameter.shape)
        * (tvm.DataType(str(parameter.dtype)).bits + 7)
        // 8
        for parameter in function.params
    )


def _time_alone(
    plans: Sequence[KernelPlan], target: Target, threads: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, float]:
    times: dict[str, float] = {}
    with LocalMeasurer([plan.kernel for plan in plans], target, seed=0, threads=threads) as measurer:
        for start in range(0, len(plans), _BATCH):
            batch = plans[start : start + _BATCH]
            records = measurer.measure([(Candidate(p.kernel, p.template, p.config), None) for p in batch])
            times |= {record.kernel: record.median_us for record in records if record.median_us is not None}
            if on_progress is not None:
                on_progress(start + len(batch), len(plans))
    return times
