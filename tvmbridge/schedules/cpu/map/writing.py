"""Writes stages without reductions: pieces of them, of which each task does its share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.map.sweep import sweep
from tvmbridge.schedules.loops.costs import VECTOR_NS, operations, worth_threads
from tvmbridge.schedules.loops.emit import parallel, sequence
from tvmbridge.schedules.loops.expressions import is_float, loads
from tvmbridge.schedules.loops.stages import Stage
from tvmbridge.schedules.loops.tiling import lanes_of
from tvmbridge.schedules.reading.pieces import moved, read_pieces
from tvmbridge.targets import Target

_BYTES_PER_NS = 20  # what one core moves between its caches


def write_maps(
    stages: Sequence[Stage], kept: Mapping[tvm.ir.Var, tvm.ir.Var], target: Target, unroll: int, tasks: int
) -> tirx.Stmt:
    """The loops of stages without reductions that read nothing of one another; each task does its share of every piece.

    kept: flat buffers to use in place of others; scratch buffers have to be flat: TVM cuts
    them down to what their indices reach for the extents that are used.
    unroll: vectors in one step of a loop. tasks: into how many the work is cut where it is enough to be worth it.
    """
    pieces = [(moved(piece, kept), _lanes(stage, target)) for stage in stages for piece in read_pieces(stage)]
    if not pieces:
        return tirx.Evaluate(0)
    if tasks == 1 or not worth_threads(sum(_work_ns(stage, target) for stage in stages), target):
        return sequence(*(sweep(piece, lanes, unroll, None) for piece, lanes in pieces))
    return parallel(
        tasks, lambda task: sequence(*(sweep(piece, lanes, unroll, (task, tasks)) for piece, lanes in pieces))
    )


def _lanes(stage: Stage, target: Target) -> int:
    """How many elements fill a vector of the widest type that takes part, indices aside."""
    dtypes = {str(stage.buffer.dtype), str(stage.value.ty.dtype)}

    def note(node: tvm.ir.Expr) -> None:
        if is_float(node):
            dtypes.add(str(node.ty.dtype))

    tvm_ffi.structural_walk(stage.value, (tvm.ir.Expr, note))
    return lanes_of(target, *dtypes)


def _work_ns(stage: Stage, target: Target) -> float:
    moved_bytes = stage.size * tvm.DataType(str(stage.buffer.dtype)).bits / 8 * (1 + len(loads(stage.value)))
    return moved_bytes / _BYTES_PER_NS + stage.size * operations(stage.value) * VECTOR_NS / _lanes(stage, target)
