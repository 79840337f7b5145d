"""Kernels without reductions on a CPU: whatever computes each element of its output from elements of its inputs.

Such a kernel is as fast as its bytes: each piece of it (see reading/pieces.py) is written as straight vector loops,
the ragged end of an axis by a last vector that overlaps the one before it. Tasks get equal shares of every piece.
"""

from __future__ import annotations

import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.map.writing import write_maps
from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.emit import scratch, sequence, with_body
from tvmbridge.schedules.loops.stages import Stage
from tvmbridge.schedules.reading.maps import CHEAP, phases, read_maps
from tvmbridge.targets import Target


def _stages(kernel: Kernel) -> tuple[Stage, ...] | None:
    return read_maps(kernel.function, keep_dear=True)


def _fits(kernel: Kernel, _target: Target) -> bool:
    return _stages(kernel) is not None


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    return [{"unroll": unroll, "tasks_per_core": tasks} for unroll in (1, 2, 4) for tasks in (1, 2)]


def _guess(kernel: Kernel, _target: Target) -> Config:
    stages = _stages(kernel)
    assert stages is not None
    cheap = all(operations(stage.value) <= CHEAP for stage in stages)
    return {"unroll": 4 if cheap else 1, "tasks_per_core": 1}


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    stages = _stages(kernel)
    assert stages is not None
    kept: dict[tvm.ir.Var, tvm.ir.Var] = {}
    allocations = []
    for stage in stages:
        if not stage.output:
            kept[stage.buffer], allocation = scratch([stage.size], str(stage.buffer.dtype), stage.name)
            allocations.append(allocation)
    tasks = target.cores * int(config["tasks_per_core"])
    loops = [write_maps(phase, kept, target, int(config["unroll"]), tasks) for phase in phases(stages)]
    return Scheduled(with_body(kernel.function, sequence(*allocations, *loops)))


TEMPLATE = Template(
    name="map",
    version=1,
    rank=5,
    fits=_fits,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
