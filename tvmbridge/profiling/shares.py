"""What part of a built network's time each of its kernels takes, and which of them are on the fallback template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tvmbridge.codegen import KernelPlan
from tvmbridge.schedules import FALLBACK


@dataclasses.dataclass(frozen=True)
class KernelShare:
    """One kernel's part of a run.

    total_us: of all its calls in one run, microseconds; share: of the time of all kernels; None where the variant
    was not timed here.
    """

    name: str
    key: str
    template: str
    total_us: float | None
    share: float | None

    @property
    def is_fallback(self) -> bool:
        """Whether it takes the template that takes what no other does."""
        return self.template == FALLBACK


def share_time(plans: Sequence[KernelPlan], kernel_us: Mapping[str, float]) -> tuple[KernelShare, ...]:
    """Share the time of a run among the kernels, the most expensive first.

    kernel_us: `VariantCheck.kernel_us`; empty where nothing was timed. A kernel that is missing in it is never called:
    TVM makes a view of what only reshapes.
    """
    whole_us = sum(kernel_us.values())
    shares = [
        KernelShare(
            name=plan.kernel.name,
            key=plan.kernel.key,
            template=plan.template.name,
            total_us=kernel_us.get(plan.symbol, 0.0) if kernel_us else None,
            share=kernel_us.get(plan.symbol, 0.0) / whole_us if whole_us else None,
        )
        for plan in plans
    ]
    return tuple(sorted(shares, key=lambda kernel: -(kernel.total_us or 0.0)))
