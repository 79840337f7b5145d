"""Kernels without reductions on a CPU: whatever computes each element of its output from elements of its inputs.

Such a kernel is as fast as its bytes: each piece of it (see reading/pieces.py) is written as straight vector loops,
the ragged end of an axis by a last vector that overlaps the one before it. Tasks get equal shares of every piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.map.writing import write_maps
from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.emit import scratch, sequence, with_body
from tvmbridge.schedules.loops.expressions import chooses, loads, loads_of
from tvmbridge.schedules.loops.stages import Stage, inline, read_stages, reads, written_out
from tvmbridge.schedules.reading.pieces import can_be_pieces
from tvmbridge.targets import Target

_CHEAP = 12  # operations of an element: a dearer one is kept for its readers, and vectors of it fill the registers
_LONGEST = (
    256  # operations of an expression; longer ones compile slowly, and a chain of x * f(x) doubles with every link
)
_SHORT = 9  # terms of a reduction that is written out: a neighbourhood such as that of local response normalisation


def _stages(kernel: Kernel) -> tuple[Stage, ...] | None:
    """What is left when element-wise work is inlined; None where some of it is not a map."""
    stages = read_stages(kernel.function)
    if stages is None:
        return None
    stages = tuple(written_out(stage, _SHORT) for stage in stages)
    if not all(can_be_pieces(stage) for stage in stages):
        return None
    kept = _kept(stages)
    return inline(stages, lambda stage: stage.buffer in kept)


def _kept(stages: Sequence[Stage]) -> set[tvm.ir.Var]:
    """What to compute once into memory rather than in each of its readers.

    That is what is expensive and would be computed three times, and what would make expressions explode.
    """
    kept: set[tvm.ir.Var] = set()
    costs: dict[tvm.ir.Var, int] = {}
    for stage in stages:
        cost = operations(stage.value) + sum(costs.get(load.source, 0) for load in loads(stage.value))
        copies = sum(len(loads_of(reader.value, stage.buffer)) for reader in stages)
        computed = sum(_elements_read(stage, reader) for reader in stages)
        if (copies > 1 and copies * cost > _LONGEST) or (cost > _CHEAP and computed >= 3 * stage.size):
            kept.add(stage.buffer)
            cost = 0
        costs[stage.buffer] = cost
    return kept


def _elements_read(stage: Stage, reader: Stage) -> int:
    """How many elements of the stage a reader reads; what a condition guards (concat, pad) it reads once."""
    found: list[tvm.ir.TensorLoad] = []
    for load in loads_of(reader.value, stage.buffer):
        if not any(tvm_ffi.structural_equal(load, other) for other in found):
            found.append(load)
    return len(found) * (min(reader.size, stage.size) if chooses(reader.value) else reader.size)


def _fits(kernel: Kernel, _target: Target) -> bool:
    return _stages(kernel) is not None


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    return [{"unroll": unroll, "tasks_per_core": tasks} for unroll in (1, 2, 4) for tasks in (1, 2)]


def _guess(kernel: Kernel, _target: Target) -> Config:
    stages = _stages(kernel)
    assert stages is not None
    cheap = all(operations(stage.value) <= _CHEAP for stage in stages)
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
    phases = [write_maps(phase, kept, target, int(config["unroll"]), tasks) for phase in _phases(stages)]
    return Scheduled(with_body(kernel.function, sequence(*allocations, *phases)))


def _phases(stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages in program order, those that read nothing of one another together."""
    phases: list[list[Stage]] = []
    for stage in stages:
        if phases and not any(reads(stage, earlier.buffer) for earlier in phases[-1]):
            phases[-1].append(stage)
        else:
            phases.append([stage])
    return phases


TEMPLATE = Template(
    name="map",
    version=1,
    rank=5,
    fits=_fits,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
