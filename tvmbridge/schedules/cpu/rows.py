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
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.emit import number, parallel, with_body
from tvmbridge.schedules.cpu.loops import divisors
from tvmbridge.schedules.cpu.row_loops import Block, power_of_two, row_loops
from tvmbridge.schedules.cpu.row_reading import read_rows
from tvmbridge.schedules.cpu.row_steps import Rows, operations, unmerged
from tvmbridge.targets import Target

_PARALLEL_NS = 10_000  # work below which a second thread costs more than it brings
_OPERATION_NS = 0.3  # of one vector


def _fits(kernel: Kernel, _target: Target) -> bool:
    return read_rows(kernel.function) is not None


def _read(kernel: Kernel) -> Rows:
    rows = read_rows(kernel.function)
    assert rows is not None
    return rows


def _lanes(rows: Rows, target: Target) -> int:
    """Elements of a vector: of the type that the reductions accumulate, in which most of the work is done."""
    bits = max(tvm.DataType(step.buffer.dtype).bits for step in rows.steps if step.combine is not None)
    return max(1, target.vector_bits // max(bits, 8))


def _work_ns(rows: Rows, target: Target) -> float:
    points = math.prod(axis.extent for axis in rows.axes)
    row = sum(math.prod(axis.extent for axis in step.axes) * operations(step.value) for step in rows.steps)
    return points * row * _OPERATION_NS / _lanes(rows, target)


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    return [
        {"accumulators": accumulators, "tasks_per_core": tasks} for accumulators in (1, 2, 4, 8) for tasks in (0, 1, 4)
    ]


def _guess(kernel: Kernel, target: Target) -> Config:
    threads_pay = target.cores > 1 and _work_ns(_read(kernel), target) >= _PARALLEL_NS
    return {"accumulators": 4, "tasks_per_core": 4 if threads_pay else 0}


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    rows = _read(kernel)
    accumulators, lanes, tasks = int(config["accumulators"]), _lanes(rows, target), int(config["tasks_per_core"])
    axes = [axis for axis in rows.axes if axis is not rows.across]
    count = math.prod(axis.extent for axis in axes)
    blocks, vectors = 1, 1
    if rows.across is not None:
        lanes = min(lanes, power_of_two(rows.across.extent))
        whole = rows.across.extent // lanes
        most = min(accumulators, math.ceil(count * whole / target.cores)) if tasks else accumulators
        blocks, vectors = _blocks(rows.across.extent, lanes, most)

    def block(place: tvm.ir.Expr) -> Block:
        values = unmerged(tirx.floordiv(place, number(blocks)), axes)
        if rows.across is not None:
            first = tirx.floormod(place, number(blocks)) * (vectors * lanes)
            last = rows.across.extent - vectors * lanes  # which may overlap the one before it
            values[rows.across.var] = first if last % (vectors * lanes) == 0 else tirx.min(first, number(last))
        across = None if rows.across is None else rows.across.var
        return Block(values, across, vectors, lanes, accumulators)

    count *= blocks
    share = divisors(count, max(1, count // (target.cores * tasks)))[-1] if tasks else count
    if share == count:
        body = row_loops(rows.steps, count, block)
    else:
        body = parallel(
            count // share, lambda task: row_loops(rows.steps, share, lambda place: block(task * share + place))
        )
    return Scheduled(with_body(kernel.function, body))


def _blocks(extent: int, lanes: int, most: int) -> tuple[int, int]:
    """How many blocks of how many vectors cover the extent, none of them longer than it, with little overlap."""
    blocks = math.ceil(extent / (lanes * min(most, extent // lanes)))
    return blocks, math.ceil(math.ceil(extent / lanes) / blocks)


TEMPLATE = Template(name="rows", version=1, rank=8, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule)
