"""Reads a kernel without reductions: stages that each compute every element of a buffer from elements of others."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.expressions import chooses, loads, loads_of
from tvmbridge.schedules.loops.stages import Stage, inline, read_stages, reads, written_out
from tvmbridge.schedules.reading.pieces import can_be_pieces

CHEAP = 12  # operations of an element: a dearer one may be worth keeping for its readers
_LONGEST = (
    256  # operations of an expression; longer ones compile slowly, and a chain of x * f(x) doubles with every link
)
_SHORT = 9  # terms of a reduction that is written out: a neighbourhood such as that of local response normalisation


def read_maps(function: tirx.PrimFunc, *, keep_dear: bool) -> tuple[Stage, ...] | None:
    """What is left when element-wise work is inlined; None where some of it is not a map.

    keep_dear: whether what is dear to compute and would be computed three times is a stage of its own. What would make
    expressions explode is one in any case.
    """
    stages = read_stages(function)
    if stages is None:
        return None
    stages = tuple(written_out(stage, _SHORT) for stage in stages)
    if not all(can_be_pieces(stage) for stage in stages):
        return None
    kept = _kept(stages, keep_dear)
    return inline(stages, lambda stage: stage.buffer in kept)


def phases(stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages in program order, those that read nothing of one another together."""
    found: list[list[Stage]] = []
    for stage in stages:
        if found and not any(reads(stage, earlier.buffer) for earlier in found[-1]):
            found[-1].append(stage)
        else:
            found.append([stage])
    return found


def _kept(stages: Sequence[Stage], keep_dear: bool) -> set[tvm.ir.Var]:
    """What to compute once into memory rather than in each of its readers."""
    kept: set[tvm.ir.Var] = set()
    costs: dict[tvm.ir.Var, int] = {}
    for stage in stages:
        cost = operations(stage.value) + sum(costs.get(load.source, 0) for load in loads(stage.value))
        copies = sum(len(loads_of(reader.value, stage.buffer)) for reader in stages)
        dear = keep_dear and cost > CHEAP and sum(_elements_read(stage, r) for r in stages) >= 3 * stage.size
        if (copies > 1 and copies * cost > _LONGEST) or dear:
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
