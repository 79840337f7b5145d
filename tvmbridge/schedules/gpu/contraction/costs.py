"""How long a product takes on a GPU, roughly: what chooses a tile where nothing was measured."""

from __future__ import annotations

import math

from tvmbridge.schedules.reading.product import Product

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

# Of a data-centre GPU of the last generations, whose number of multiprocessors no architecture fixes (A100: 108, H100:
# 132, L4: 58; NVIDIA's data sheets). The limits of a multiprocessor are those of the CUDA C++ Programming Guide.
_PROCESSORS = 108
_RESIDENT_THREADS, _RESIDENT_BLOCKS, _REGISTERS = 2048, 16, 65536
_LANES = 128  # that a multiprocessor executes at once
_LATENCY = 500  # cycles from a load of global memory to its use, and two barriers
_BYTES_PER_CYCLE = 1000.0  # of global memory
_CACHED_BYTES_PER_CYCLE = 2500.0  # of the second-level cache
_LAUNCH = 3000  # cycles that one more kernel costs


def sensible_splits(steps: int) -> list[int]:
    """Into how many parts to cut so many steps: those that leave each part a few steps; 1 always does."""
    return [split for split in _SPLITS if split == 1 or steps >= 2 * split]


def estimate(
    product: Product,
    *,
    rows: int,
    columns: int,
    steps: int,
    splits: int,
    threads: int,
    registers: int,
    step_cycles: float,
    step_bytes: int,
) -> float:
    """Cycles that the product takes.

    rows, columns: of a block's tile. steps: of the depth. splits: parts that these are dealt out to. threads: of a
    block. registers: of a thread. step_cycles: what one step of a block takes of a multiprocessor all its own.
    step_bytes: what it loads.
    """
    blocks = product.repeats * -(-product.rows // rows) * -(-product.columns // columns) * splits
    resident = min(_RESIDENT_BLOCKS, _RESIDENT_THREADS // threads, max(1, _REGISTERS // (threads * registers)))
    together = min(resident, -(-blocks // _PROCESSORS))
    per_block = -(-steps // splits)
    # Few threads use a part of the processor's lanes only; several blocks hide each other's latency.
    alone = per_block * (step_cycles * max(1.0, _LANES / threads) + _LATENCY)
    wave = max(alone, together * per_block * step_cycles)
    waves = math.ceil(blocks / (_PROCESSORS * together))
    moved = product.repeats * product.rows * product.columns * 4 * (2 * splits if splits > 1 else 1)
    busy = max(waves * wave, blocks * per_block * step_bytes / _CACHED_BYTES_PER_CYCLE)
    return busy + moved / _BYTES_PER_CYCLE + (_LAUNCH if splits > 1 else 0)
