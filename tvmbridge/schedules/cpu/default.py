"""Any kernel on a CPU: element-wise work inlined, the last spatial axis vectorised, the outer ones parallel."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import FALLBACK, Config, Scheduled, Template
from tvmbridge.schedules.loops.costs import worth_threads
from tvmbridge.schedules.loops.differences import without_divided_differences
from tvmbridge.schedules.loops.tiling import divisors
from tvmbridge.targets import Target

_ELEMENT_NS = 0.5


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    schedule = Schedule(tvm.IRModule({"main": kernel.function}), debug_mask="none")
    for block in _blocks(schedule):
        if schedule.get_consumers(block) and schedule.get(block).init is None:
            try:
                schedule.compute_inline(block)
            except ScheduleError:
                continue  # read in more than one way by its consumer: stays a block of its own
    for block in _blocks(schedule):
        spatial, reduction = _spatial_loops(schedule, block)
        if not spatial:
            continue
        *outer, last = spatial
        elements = 1
        for loop in (*spatial, *reduction):
            elements *= _extent(schedule, loop)
        lanes = divisors(_extent(schedule, last), int(config["lanes"]))[-1]
        chunk, vector = schedule.split(last, [None, lanes])
        if reduction:
            schedule.reorder(chunk, *reduction, vector)
        schedule.vectorize(vector)
        if worth_threads(elements * _ELEMENT_NS, target):
            schedule.parallel(schedule.fuse(*outer, chunk))
    function = without_divided_differences(schedule.mod["main"]).with_attr("tirx.is_scheduled", True)
    return Scheduled(function, trace=schedule.trace)


def _blocks(schedule: Schedule) -> list[SBlockRV]:
    """The compute blocks in program order; none where the function is one opaque block (sorts, scatters)."""
    if schedule.mod["main"].body.block.name_hint != "root":
        return []
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _spatial_loops(schedule: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """The block's loops as (spatial, reduction), where all spatial ones come first; ([], []) where they do not."""
    kinds = [int(axis.iter_type) for axis in schedule.get(block).iter_vars]
    loops = list(schedule.get_loops(block))
    count = sum(kind == 0 for kind in kinds)
    if len(loops) != len(kinds) or any(kind == 0 for kind in kinds[count:]):
        return [], []
    return loops[:count], loops[count:]


def _extent(schedule: Schedule, loop: LoopRV) -> int:
    """The trip count of a loop; 0 where only the run decides it."""
    value = schedule.get(loop).extent
    return int(value) if hasattr(value, "value") else 0


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
