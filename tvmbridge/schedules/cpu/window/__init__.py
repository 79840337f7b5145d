"""Sliding windows on a CPU: depthwise convolution and pooling of channels-last tensors, channels in vector lanes.

Of what a register tile needs, the inputs are shared by the windows that overlap them, and the weights by its positions.
Rows are cut into blocks of channels so that the rows that a window reads again are still in the first-level cache.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.window.tiles import Tiling, row
from tvmbridge.schedules.loops.costs import VECTOR_NS, worth_threads
from tvmbridge.schedules.loops.emit import loop, parallel, with_body
from tvmbridge.schedules.loops.shares import shared
from tvmbridge.schedules.loops.tiling import cut, lanes_of, within
from tvmbridge.schedules.reading.sliding import Sliding, read_sliding
from tvmbridge.targets import Target

_SETS, _WAYS, _LINE_BYTES = 64, 8, 64  # a first-level cache as most cores have it: 32 kB


def _lanes(sliding: Sliding, target: Target) -> int:
    """A full vector of accumulators, or the largest power of two of channels that there is."""
    return within(len(sliding.across.whole), lanes_of(target, str(sliding.accumulator.dtype)))


def _fits(kernel: Kernel, _target: Target) -> bool:
    return read_sliding(kernel.function) is not None


def _configs(kernel: Kernel, target: Target) -> list[Config]:
    """positions, vectors: of a tile. block: tiles of channels that are done before the next positions."""
    sliding = read_sliding(kernel.function)
    if sliding is None:
        return []
    lanes = _lanes(sliding, target)
    found: list[Config] = []
    for vectors in range(1, min(4, len(sliding.across.whole) // lanes) + 1):
        slide = Tiling(sliding, lanes, vectors, 1).slide
        for positions in sorted({cut(slide.axis.extent, largest).size for largest in (1, 2, 4, 6, 8, 11, 14)}):
            tiling = Tiling(sliding, lanes, vectors, positions)
            held = (positions + slide.window) * vectors + 1
            if positions == 1 or (held <= target.vector_registers and tiling.written_out):
                blocks = (
                    [tiling.groups.count]
                    if sliding.across.padded
                    else sorted({1, min(4, tiling.groups.count), tiling.groups.count})
                )
                found += [{"positions": positions, "vectors": vectors, "block": block} for block in blocks]
    return found


def _guess(kernel: Kernel, target: Target) -> Config:
    """One vector of channels at a time where the first-level cache keeps the rows of a window, else neighbours too.

    A window that slides along the vectors shares no inputs between positions: then a tile is mostly vectors.
    """
    sliding = read_sliding(kernel.function)
    assert sliding is not None, kernel.key
    if sliding.across.window > 1:
        positions, vectors, block = 2, 4, 4
    else:
        positions, vectors, block = (8, 1, 1) if _rows_stay_in_cache(sliding) else (4, 2, 4)
    within = [c for c in _configs(kernel, target) if int(c["positions"]) <= positions and int(c["vectors"]) <= vectors]
    return max(
        within,
        key=lambda c: (int(c["positions"]) * int(c["vectors"]), int(c["vectors"]), -abs(int(c["block"]) - block)),
    )


def _rows_stay_in_cache(sliding: Sliding) -> bool:
    """Whether the inputs of one vector of channels, in all rows that a window reaches, fit the first-level cache.

    Where the step from one position to the next is a large power of two, their addresses reach few of its sets.
    """
    tiled = Tiling(sliding, 1, 1, 1)
    slide = tiled.slide
    inputs = (slide.axis.extent - 1) * slide.stride + (slide.window - 1) * slide.dilation + 1
    lines = inputs * math.prod(other.window for other in tiled.others)
    step_bytes = sliding.channels.extent * tvm.DataType(str(sliding.accumulator.dtype)).bits // 8
    reached = _SETS * _LINE_BYTES // math.gcd(step_bytes, _SETS * _LINE_BYTES)
    return lines <= min(reached, _SETS) * _WAYS


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    sliding = read_sliding(kernel.function)
    if sliding is None:
        raise ValueError(f"{kernel.key} slides no window")
    tiling = Tiling(sliding, _lanes(sliding, target), int(config["vectors"]), int(config["positions"]))
    # The borders along the channels belong to no block: there is but one then.
    blocks = 1 if sliding.across.padded else math.ceil(tiling.groups.count / int(config["block"]))
    alone = not worth_threads(tiling.steps * VECTOR_NS, target)
    parts = 1 if alone else _parts(blocks, tiling.rows, target.cores)

    def task(index: tvm.ir.Expr) -> tirx.Stmt:
        block, part = tirx.floordiv(index, parts), tirx.floormod(index, parts)
        groups = (block, blocks)
        return shared(
            tiling.rows, (part, parts), lambda i: row(tiling, i, lambda body: shared(tiling.groups.count, groups, body))
        )

    body = loop(blocks, task) if alone else parallel(blocks * parts, task)
    return Scheduled(with_body(kernel.function, body))


def _parts(blocks: int, rows: int, cores: int) -> int:
    """Into how many parts the rows of a block of channels are cut, so that each core gets as much as the others."""
    enough = (n for n in range(1, rows + 1) if blocks * n % cores == 0 or blocks * n >= 8 * cores)
    return next(enough, rows)


TEMPLATE = Template(name="window", version=1, rank=10, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule)
