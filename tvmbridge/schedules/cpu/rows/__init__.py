"""Reductions over whole axes on a CPU: softmax, normalisations, sums, means and extrema of any axes.

All steps of a row run one after another while the row is in the cache, and only what is read again is kept, in a buffer
of one row. Vectors lie along the reduced axis where that is contiguous in memory: several are accumulated independently
of each other, so that an addition need not wait for the one before it, and folded into one number at the end. Where
another axis is contiguous, vectors hold neighbouring rows instead. Sums are therefore added up in another order than
the operator's own; their error is smaller for it.
"""

from __future__ import annotations

import math

import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.rows.writing import Block, row_loops
from tvmbridge.schedules.loops.costs import VECTOR_NS, operations, worth_threads
from tvmbridge.schedules.loops.emit import parallel, with_body
from tvmbridge.schedules.loops.indices import coordinates
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import Blocks, cut, lanes_of, within
from tvmbridge.schedules.reading.row_steps import Rows
from tvmbridge.schedules.reading.rows import read_rows
from tvmbridge.targets import Target


def _fits(kernel: Kernel, _target: Target) -> bool:
    return read_rows(kernel.function) is not None


def _read(kernel: Kernel) -> Rows:
    rows = read_rows(kernel.function)
    assert rows is not None
    return rows


def _lanes(rows: Rows, target: Target) -> int:
    """Elements of a vector: of the type that the reductions accumulate, in which most of the work is done."""
    return lanes_of(target, *(str(step.buffer.dtype) for step in rows.steps if step.combine is not None))


def _work_ns(rows: Rows, target: Target) -> float:
    points = math.prod(axis.extent for axis in rows.axes)
    row = sum(math.prod(axis.extent for axis in step.axes) * operations(step.value) for step in rows.steps)
    return points * row * VECTOR_NS / _lanes(rows, target)


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    return [
        {"accumulators": accumulators, "tasks_per_core": tasks} for accumulators in (1, 2, 4, 8) for tasks in (1, 4)
    ]


def _guess(_kernel: Kernel, _target: Target) -> Config:
    return {"accumulators": 4, "tasks_per_core": 4}


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    rows = _read(kernel)
    accumulators, lanes, tasks = int(config["accumulators"]), _lanes(rows, target), 1
    if worth_threads(_work_ns(rows, target), target):
        tasks = target.cores * int(config["tasks_per_core"])
    axes = [axis for axis in rows.axes if axis is not rows.across]
    count, vectors, side_by_side = math.prod(axis.extent for axis in axes), 1, None
    if rows.across is not None:
        extent = rows.across.extent
        lanes = within(extent, lanes)
        # Vectors enough to hide the latency of an operation, but not so many that a core has no block.
        most = accumulators if tasks == 1 else min(accumulators, math.ceil(count * (extent // lanes) / target.cores))
        vectors = cut(math.ceil(extent / lanes), min(most, extent // lanes)).size
        side_by_side = Blocks(extent, vectors * lanes)
        axes.append(Axis(rows.across.var, side_by_side.count))
        count *= side_by_side.count

    def block(place: tvm.ir.Expr) -> Block:
        values = coordinates(place, axes)
        across = None if rows.across is None else rows.across.var
        if across is not None and side_by_side is not None:
            values[across] = side_by_side.start(values[across])
        return Block(values, across, vectors, lanes, accumulators)

    tasks = min(tasks, count)
    if tasks == 1:
        body = row_loops(rows.steps, block, count, None)
    else:
        body = parallel(tasks, lambda task: row_loops(rows.steps, block, count, (task, tasks)))
    return Scheduled(with_body(kernel.function, body))


TEMPLATE = Template(name="rows", version=1, rank=8, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule)
