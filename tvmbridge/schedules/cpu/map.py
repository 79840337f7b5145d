"""Kernels without reductions on a CPU: whatever computes each element of its output from elements of its inputs.

Such a kernel is as fast as its bytes: each piece of it (see pieces.py) is written as straight vector loops, the ragged
end of an axis by a last vector that overlaps the one before it. Tasks get equal shares of every piece.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.emit import parallel, scratch, sequence, with_body
from tvmbridge.schedules.cpu.offsets import offset_of
from tvmbridge.schedules.cpu.pieces import Piece, can_be_pieces, read_pieces
from tvmbridge.schedules.cpu.stages import Stage, inline, loads, read_stages, reads, written_out
from tvmbridge.schedules.cpu.sweep import sweep
from tvmbridge.targets import Target

_SERIAL_NS = 10_000  # of one core's work: below it a second thread costs more than it brings
_BYTES_PER_NS = 20  # what one core moves between its caches
_OPERATION_NS, _CALL_NS = 0.03, 0.4  # an element's arithmetic in vectors; a function such as exp
_EXPENSIVE_NS = 0.35  # for one element: what is cheaper is computed anew by each of its readers
_CHEAP_OPERATIONS = 12
_SHORT = 9  # terms of a reduction that is written out: a neighbourhood such as that of local response normalisation


def _stages(kernel: Kernel) -> tuple[Stage, ...] | None:
    """What is left when element-wise work is inlined; None where some of it is not a map."""
    stages = read_stages(kernel.function)
    if stages is None:
        return None
    stages = tuple(written_out(stage, _SHORT) for stage in stages)
    if not all(can_be_pieces(stage) for stage in stages):
        return None
    every = stages

    def keep(stage: Stage) -> bool:
        """Whether to compute it once into memory: it is expensive, and its readers would compute it three times."""
        if _operations_ns(stage) < _EXPENSIVE_NS:
            return False
        times = sum(
            _size(reader) * _distinct_loads(reader, stage.buffer) for reader in every if reads(reader, stage.buffer)
        )
        return times >= 3 * _size(stage)

    return inline(stages, keep)


def _size(stage: Stage) -> int:
    return math.prod(axis.extent for axis in stage.spatial)


def _distinct_loads(reader: Stage, buffer: tvm.ir.Var) -> int:
    found: list[tvm.ir.TensorLoad] = []
    for load in loads(reader.value):
        if load.source.same_as(buffer) and not any(tvm_ffi.structural_equal(load, other) for other in found):
            found.append(load)
    return len(found)


def _operations(stage: Stage) -> tuple[int, int]:
    """(arithmetic operations, calls of functions) for one element."""
    operations = calls = 0

    def note(node: tvm.ir.Expr) -> None:
        nonlocal operations, calls
        if isinstance(node, tvm.ir.Call):
            calls += getattr(node.op, "name", "").rpartition(".")[2] != "if_then_else"
        elif _is_float(node) and not isinstance(node, tirx.FloatImm):
            operations += 1

    tvm_ffi.structural_walk(stage.value, (tvm.ir.Expr, note))
    return operations, calls


def _is_float(node: tvm.ir.Expr) -> bool:
    return isinstance(node.ty, tvm.ir.PrimType) and str(node.ty.dtype).startswith(("float", "bfloat"))


def _operations_ns(stage: Stage) -> float:
    operations, calls = _operations(stage)
    return operations * _OPERATION_NS + calls * _CALL_NS


def _stage_ns(stage: Stage) -> float:
    element_bytes = _bits(str(stage.buffer.dtype)) / 8 * (1 + len(loads(stage.value)))
    return _size(stage) * (element_bytes / _BYTES_PER_NS + _operations_ns(stage))


def _bits(dtype: str) -> int:
    return max(8, tvm.DataType(dtype).bits)


def _lanes(stage: Stage, target: Target) -> int:
    """How many elements fill a vector of the widest type that takes part, indices aside."""
    dtypes = {str(stage.buffer.dtype), str(stage.value.ty.dtype)}

    def note(node: tvm.ir.Expr) -> None:
        if _is_float(node):
            dtypes.add(str(node.ty.dtype))

    tvm_ffi.structural_walk(stage.value, (tvm.ir.Expr, note))
    return target.vector_bits // max(_bits(dtype) for dtype in dtypes)


def _fits(kernel: Kernel, _target: Target) -> bool:
    return _stages(kernel) is not None


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    return [{"unroll": unroll, "tasks": tasks} for unroll in (1, 2, 4) for tasks in (1, 2)]


def _guess(kernel: Kernel, _target: Target) -> Config:
    stages = _stages(kernel)
    assert stages is not None
    cheap = all(operations <= _CHEAP_OPERATIONS and not calls for operations, calls in map(_operations, stages))
    return {"unroll": 4 if cheap else 1, "tasks": 1}


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    stages = _stages(kernel)
    assert stages is not None
    kept: dict[tvm.ir.Var, tvm.ir.Var] = {}
    allocations = []
    for stage in stages:
        if not any(stage.buffer.same_as(output) for output in kernel.function.params):
            # Flat, as pieces count: TVM cuts a scratch buffer down to what it takes for the extents that are used.
            kept[stage.buffer], allocation = scratch([_size(stage)], str(stage.buffer.dtype), stage.name, "global")
            allocations.append(allocation)
    tasks = target.cores * int(config["tasks"])
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


def write_maps(
    stages: Sequence[Stage], kept: Mapping[tvm.ir.Var, tvm.ir.Var], target: Target, unroll: int, tasks: int
) -> tirx.Stmt:
    """The loops of stages without reductions that read nothing of one another; each task does its share of every piece.

    kept: flat buffers to use in place of others; scratch buffers have to be flat (see `_schedule`).
    unroll: vectors in one step of a loop. tasks: into how many the work is cut where it is enough to be worth it.
    """
    pieces = [(_moved(piece, kept), _lanes(stage, target)) for stage in stages for piece in read_pieces(stage)]
    if not pieces:
        return tirx.Evaluate(0)
    if sum(map(_stage_ns, stages)) < _SERIAL_NS or tasks == 1:
        return sequence(*(sweep(piece, lanes, unroll, None) for piece, lanes in pieces))
    return parallel(
        tasks, lambda task: sequence(*(sweep(piece, lanes, unroll, (task, tasks)) for piece, lanes in pieces))
    )


def _moved(piece: Piece, buffers: Mapping[tvm.ir.Var, tvm.ir.Var]) -> Piece:
    """The piece with flat buffers in place of others."""

    def moved(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        return tirx.BufferLoad(buffers[load.source], [offset_of(load)]) if load.source in buffers else load

    value = tvm_ffi.structural_map(piece.value, (tvm.ir.TensorLoad, moved)) if buffers else piece.value
    return dataclasses.replace(piece, buffer=buffers.get(piece.buffer, piece.buffer), value=value)


TEMPLATE = Template(
    name="map",
    version=1,
    rank=5,
    fits=_fits,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
