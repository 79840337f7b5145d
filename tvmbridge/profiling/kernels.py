"""The kernels of a built network: times in the network and alone, work, and the rate at which they do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tvmbridge.codegen import KernelPlan
from tvmbridge.lowering.counts import count_bytes, count_flops
from tvmbridge.profiling.peak import Peak, measure_peak
from tvmbridge.schedules import FALLBACK, Config
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.tasks import Candidate, is_static

_BATCH = 8


@dataclasses.dataclass(frozen=True)
class KernelProfile:
    """One kernel of a network.

    call_us: of one call in the network, the mean of its calls there; microseconds. alone_us: of one call by itself,
    over and over, as the tuner measures it; None where it could not be timed so.
    flops: additions, multiplications, divisions and comparisons of one call, as the unscheduled function has them;
    functions such as exp count nothing; None where how often depends on the data.
    size_bytes: of what it reads of its inputs and of its outputs, each element once; None where an axis is unknown.
    """

    name: str
    key: str
    template: str
    config: Config
    tuned: bool
    calls: int
    call_us: float
    alone_us: float | None
    flops: float | None
    size_bytes: int | None

    @property
    def total_us(self) -> float:
        """Of all its calls in one run of the network."""
        return self.call_us * self.calls

    @property
    def gflops(self) -> float | None:
        """Its rate in the network, 1e9 operations a second."""
        return self.flops / self.call_us / 1e3 if self.flops is not None and self.call_us else None

    @property
    def gb_per_s(self) -> float | None:
        """Its rate in the network, 1e9 bytes a second."""
        return self.size_bytes / self.call_us / 1e3 if self.size_bytes is not None and self.call_us else None

    @property
    def is_fallback(self) -> bool:
        """Whether it takes the template that takes what no other does."""
        return self.template == FALLBACK

    def bound(self, peak: Peak) -> str:
        """What would take it longer at peak rate: "compute" or "memory"."""
        return "compute" if (self.flops or 0.0) / peak.gflops > (self.size_bytes or 0) / peak.gb_per_s else "memory"

    def of_peak(self, peak: Peak) -> float | None:
        """Its rate at what bounds it, as a part of the peak; above 1 where caches give more than memory could."""
        compute = self.bound(peak) == "compute"
        rate, best = (self.gflops, peak.gflops) if compute else (self.gb_per_s, peak.gb_per_s)
        return rate / best if rate is not None else None


@dataclasses.dataclass(frozen=True)
class NetworkProfile:
    """The kernels of a network on `threads` threads, the one that takes the most time first.

    runtime_us: what functions of TVM's runtime take of one run, by name; sorting, for one, is no kernel.
    """

    threads: int
    peak: Peak
    kernels: tuple[KernelProfile, ...]
    runtime_us: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def total_us(self) -> float:
        """All kernels and runtime functions of one run."""
        return sum(kernel.total_us for kernel in self.kernels) + sum(self.runtime_us.values())

    @property
    def alone_us(self) -> float:
        """The same with each kernel at the time that it takes alone, where that is known."""
        times = ((k.call_us if k.alone_us is None else k.alone_us) * k.calls for k in self.kernels)
        return sum(times) + sum(self.runtime_us.values())

    @property
    def fallback(self) -> tuple[KernelProfile, ...]:
        """The kernels that take the template that takes what no other does."""
        return tuple(kernel for kernel in self.kernels if kernel.is_fallback)

    def share(self, *kernels: KernelProfile) -> float:
        """What part of the whole time these kernels take."""
        return sum(kernel.total_us for kernel in kernels) / self.total_us if self.total_us else 0.0


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
    with the number of kernels that have been timed alone, and of all. TuningError where measuring fails altogether.
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
            call_us=kernel_us.get(plan.symbol, 0.0) / plan.kernel.calls,
            alone_us=alone.get(plan.kernel.key),
            flops=count_flops(plan.kernel.function),
            size_bytes=count_bytes(plan.kernel.function) if is_static(plan.kernel) else None,
        )
        for plan in plans
    ]
    symbols = {plan.symbol for plan in plans}
    return NetworkProfile(
        threads=threads,
        peak=peak,
        kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.total_us)),
        runtime_us={name: time_us for name, time_us in kernel_us.items() if name not in symbols},
    )


def _time_alone(
    plans: Sequence[KernelPlan], target: Target, threads: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, float]:
    """By kernel key, the fastest of a few repeats: what else runs here makes some of them slower."""
    times: dict[str, float] = {}
    with LocalMeasurer([plan.kernel for plan in plans], target, seed=0, threads=threads) as measurer:
        for start in range(0, len(plans), _BATCH):
            batch = plans[start : start + _BATCH]
            records = measurer.measure([(Candidate(p.kernel, p.template, p.config), None) for p in batch])
            times |= {record.kernel: min(record.times_us) for record in records if record.times_us}
            if on_progress is not None:
                on_progress(start + len(batch), len(plans))
    return times
