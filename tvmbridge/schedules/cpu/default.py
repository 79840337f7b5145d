"""Any kernel on a CPU: element-wise work inlined, the last spatial axis vectorised, the outer ones parallel."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule, ScheduleError

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import FALLBACK, Config, Scheduled, Template
from tvmbridge.schedules.cpu.differences import without_divided_differences
from tvmbridge.schedules.cpu.loops import blocks, divisors, extent, is_reduction, spatial_loops
from tvmbridge.targets import Target

# Below this many elements a thread's start costs more than its work: about 5 µs against 0.2 ns an element.
_PARALLEL_ELEMENTS = 16384


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    schedule = Schedule(tvm.IRModule({"main": kernel.function}), debug_mask="none")
    for block in blocks(schedule):
        if schedule.get_consumers(block) and not is_reduction(schedule, block):
            try:
                schedule.compute_inline(block)
            except ScheduleError:
                continue  # read in more than one way by its consumer: stays a block of its own
    for block in blocks(schedule):
        spatial, reduction = spatial_loops(schedule, block)
        if not spatial:
            continue
        *outer, last = spatial
        elements = 1
        for loop in (*spatial, *reduction):
            elements *= extent(schedule, loop)
        lanes = divisors(extent(schedule, last), int(config["lanes"]))[-1]
        chunk, vector = schedule.split(last, [None, lanes])
        if reduction:
            schedule.reorder(chunk, *reduction, vector)
        schedule.vectorize(vector)
        if elements >= _PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*outer, chunk))
    return Scheduled(without_divided_differences(schedule.mod["main"]).with_attr("tirx.is_scheduled", True))


def _configs(_kernel: Kernel, target: Target) -> list[Config]:
    lanes = target.vector_bits // 32
    return [{"lanes": lanes * factor} for factor in (1, 2, 4)]


TEMPLATE = Template(
    name=FALLBACK,
    version=1,
    rank=0,
    fits=lambda _kernel, _target: True,
    configs=_configs,
    guess=lambda kernel, target: _configs(kernel, target)[0],
    schedule=_schedule,
)
