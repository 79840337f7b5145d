"""Reductions over whole axes on a GPU: softmax, normalisations, sums, means and extrema of any axes.

A group of threads does a row from its first step to its last: what several steps read is loaded once and stays in
registers, sums are combined by shuffles within a warp and through shared memory between warps. Where the reduced axes
are contiguous in memory, the threads of a group lie side by side along the row; where another axis is, neighbouring
threads have neighbouring rows, and the members of a group lie that far apart.
"""

from __future__ import annotations

import math

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.gpu.exchange import Groups
from tvmbridge.schedules.gpu.launch import MAX_THREADS, WARP
from tvmbridge.schedules.gpu.rows.elements import ElementStep, element_steps
from tvmbridge.schedules.gpu.rows.writing import MOST_CHUNKS, write_rows
from tvmbridge.schedules.loops.emit import with_body
from tvmbridge.schedules.reading.row_steps import Rows
from tvmbridge.schedules.reading.rows import read_rows
from tvmbridge.targets import Target

_FILLING = 1 << 15  # threads that keep a GPU busy
_FEW = 4  # elements of a thread below which more threads bring nothing


def _read(kernel: Kernel) -> Rows:
    rows = read_rows(kernel.function)
    assert rows is not None
    return rows


def _steps(rows: Rows, members: int) -> list[ElementStep] | None:
    """The steps, with elements in registers where these are few enough for a thread to have them there."""
    held = element_steps(rows, hold=True)
    if held is None or max(step.count for step in held) <= MOST_CHUNKS * members:
        return held
    return element_steps(rows, hold=False)


def _fits(kernel: Kernel, _target: Target) -> bool:
    rows = read_rows(kernel.function)
    return rows is not None and all(element_steps(rows, hold=hold) is not None for hold in (True, False))


def _length(rows: Rows) -> int:
    """Elements of a row."""
    return max(math.prod(axis.extent for axis in step.axes) for step in rows.steps)


def _count(rows: Rows) -> int:
    """How many rows there are."""
    return math.prod(axis.extent for axis in rows.axes)


def _configs(kernel: Kernel, _target: Target) -> list[Config]:
    """members: threads of a row. threads: of a block, at least. vector: most elements of a load or store."""
    rows = _read(kernel)
    most = 1 << max(0, _length(rows) - 1).bit_length()
    vectors = (1,) if rows.across is not None else (1, 2, 4)
    return [
        {"members": members, "threads": threads, "vector": vector}
        for members in (1 << bit for bit in range(MAX_THREADS.bit_length()))
        for threads in (64, 128, 256, 512, 1024)
        for vector in vectors
        if members <= min(threads, most)
    ]


def _guess(kernel: Kernel, _target: Target) -> Config:
    """As many members as leave each a few elements, or more where the rows alone do not keep the GPU busy."""
    rows = _read(kernel)
    length, count, across = _length(rows), _count(rows), rows.across is not None
    vector = 1 if across else 4
    members = 1
    while members * 2 <= length and members < MAX_THREADS:
        share = length / members
        few_threads = count * members < _FILLING
        enough = share <= _FEW if few_threads else share <= MOST_CHUNKS // 2 if not across else share <= MOST_CHUNKS
        if enough:
            break
        members *= 2
    # Side by side a block has a warp's breadth of rows; along a row, neighbours load its neighbours up to a warp.
    members = min(members, MAX_THREADS // WARP) if across else max(members, min(WARP, 1 << (length - 1).bit_length()))
    threads = max(128, members * (WARP if across else 1))
    fitting = [c for c in _configs(kernel, _target) if c["members"] == members and c["vector"] == vector]
    return min(fitting, key=lambda config: abs(int(config["threads"]) - threads))


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    rows, members = _read(kernel), int(config["members"])
    steps = _steps(rows, members)
    if steps is None:
        raise ValueError(f"{kernel.key} has steps that read each other's elements")
    groups = Groups(int(config["threads"]) // members, members, rows.across is not None)
    return Scheduled(with_body(kernel.function, write_rows(rows, steps, groups, int(config["vector"]))))


TEMPLATE = Template(name="rows", version=1, rank=8, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule)
