"""How long a product takes on a GPU, roughly: what chooses a tile where nothing was measured."""

from __future__ import annotations

import math

from tvmbridge.schedules.reading.product import Product
from tvmbridge.targets.gpu_architectures import GpuLimits

_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

ISSUED_LANES = 128  # that a multiprocessor issues instructions for at once
_LATENCY = 500  # cycles from a load of global memory to its use, and two barriers
_CACHED_BYTES_PER_CYCLE = 2500.0  # of the second-level cache
_LAUNCH = 3000  # cycles that one more kernel costs


def sensible_splits(steps: int) -> list[int]:
    """Into how many parts to cut so many steps: those that leave each part a few steps; 1 always does."""
    return [split for split in _SPLITS if split == 1 or steps >= 2 * split]


def estimate(
    product: Product,
    limits: GpuLimits,
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
    """Cycles that the product takes on a device of these limits, the largest of its architecture.

    A smaller one gets more splits than it needs, which costs less than idle multiprocessors would.

    rows, columns: of a block's tile. steps: of the depth. splits: parts that these are dealt out to. threads: of a
    block. registers: of a thread. step_cycles: what one step of a block takes of a multiprocessor all its own.
    step_bytes: what it loads.
    """
    blocks = product.repeats * -(-product.rows // rows) * -(-product.columns // columns) * splits
    by_registers = max(1, limits.registers_per_sm // (threads * registers))
    resident = min(limits.blocks_per_sm, limits.threads_per_sm // threads, by_registers)
    together = min(resident, -(-blocks // limits.multiprocessors))
    per_block = -(-steps // splits)
    # Few threads use a part of the processor's lanes only; several blocks hide each other's latency.
    alone = per_block * (step_cycles * max(1.0, ISSUED_LANES / threads) + _LATENCY)
    wave = max(alone, together * per_block * step_cycles)
    waves = math.ceil(blocks / (limits.multiprocessors * together))
    moved = product.repeats * product.rows * product.columns * 4 * (2 * splits if splits > 1 else 1)
    busy = max(waves * wave, blocks * per_block * step_bytes / _CACHED_BYTES_PER_CYCLE)
    return busy + moved / limits.memory_bytes_per_cycle + (_LAUNCH if splits > 1 else 0)
