"""Which template and config each kernel gets: the log's best record where there is one, else the template's guess."""

from __future__ import annotations

import dataclasses
import math

from tvmbridge.errors import CompileError, is_interrupt, reason
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules import Config, Scheduled, Template, fitting_templates, recorded_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord

_BRIEF = 120  # characters of a config in a message: a trace has thousands


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """One kernel with its schedule decided and applied.

    record: the tuning record that decided it; None where the template guessed.
    skipped: why a better-ranked template or a record was passed over, one line each.
    """

    kernel: Kernel
    template: Template
    config: Config
    scheduled: Scheduled
    record: TrialRecord | None
    skipped: tuple[str, ...] = ()

    @property
    def symbol(self) -> str:
        """The name of its function in the library."""
        # Packing changes the type of a parameter, and with it that of the function, which so needs a name of its own.
        return f"{self.kernel.name}_packed" if self.scheduled.packings else self.kernel.name


def plan_kernels(lowered: LoweredModel, target: Target, records: LogRecords | None) -> tuple[KernelPlan, ...]:
    """Decide and apply a schedule for every kernel; CompileError names a kernel that no template can schedule."""
    return tuple(plan_kernel(kernel, target, records) for kernel in lowered.kernels)


def rank_records(kernel: Kernel, target: Target, records: LogRecords) -> list[tuple[Template, TrialRecord]]:
    """The best record of each template that takes the kernel and has any, the one that a build takes first."""
    recorded = [
        (template, record)
        for template in recorded_templates(kernel, target)
        if (record := records.best(kernel.key, target.key, template.name, template.version)) is not None
    ]
    # Times taken in the network are not held against times taken alone: what was checked in the end comes first.
    return sorted(recorded, key=lambda pair: (not pair[1].final, pair[1].median_us or math.inf))


def plan_kernel(kernel: Kernel, target: Target, records: LogRecords | None) -> KernelPlan:
    """Decide and apply one kernel's schedule: record, then each fitting template's guess in order of rank."""
    recorded = rank_records(kernel, target, records) if records is not None else []
    candidates: list[tuple[Template, Config, TrialRecord | None]] = [(t, r.config, r) for t, r in recorded]
    candidates += [(template, template.guess(kernel, target), None) for template in fitting_templates(kernel, target)]
    skipped = []
    for template, config, used in candidates:
        try:
            scheduled = template.schedule(kernel, target, config)
        except Exception as exc:  # TVM's schedule primitives raise many kinds; the next candidate is the answer to all
            if is_interrupt(exc):
                raise KeyboardInterrupt from exc
            skipped.append(f"{template.name} {_brief(config)}: {reason(exc)}")
            continue
        return KernelPlan(kernel, template, config, scheduled, used, tuple(skipped))
    raise CompileError(f"no schedule works for kernel {kernel.key} on {target.name}:\n  " + "\n  ".join(skipped))


def _brief(config: Config) -> str:
    text = str(config)
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}…"
