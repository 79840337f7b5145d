"""TVM's own untuned GPU rules (dlight): the first that takes a kernel schedules it."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir import dlight as dl

from tvmbridge.errors import is_interrupt
from tvmbridge.lowering import Kernel
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.targets import Target


def _schedule(kernel: Kernel, target: Target, _config: Config) -> Scheduled:
    rules = (dl.gpu.Matmul(), dl.gpu.GEMV(), dl.gpu.Reduction(), dl.gpu.GeneralReduction(), dl.gpu.Fallback())
    described = tvm_target(target)
    with described:
        for rule in rules:
            try:
                schedule = rule.apply(kernel.function, described, False)
            except Exception as exc:  # a rule may find out halfway, in many ways, that the kernel is not one for it
                if is_interrupt(exc):
                    raise KeyboardInterrupt from exc
                continue
            if isinstance(schedule, Schedule):
                function = schedule.mod["main"]
                return Scheduled(function.with_attr("tirx.is_scheduled", True), trace=schedule.trace)
    raise ValueError(f"no dlight rule takes {kernel.name}")


TEMPLATE = Template(
    name="dlight",
    version=1,
    rank=0,
    fits=lambda _kernel, _target: True,
    configs=lambda _kernel, _target: [{}],
    guess=lambda _kernel, _target: {},
    schedule=_schedule,
)
