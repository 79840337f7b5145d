"""Questions that CPU templates ask of a schedule's blocks and loops."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV


def blocks(schedule: Schedule) -> list[SBlockRV]:
    """The compute blocks in program order; none where the function is one opaque block (sorts, scatters)."""
    if schedule.mod["main"].body.block.name_hint != "root":
        return []
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def extent(schedule: Schedule, loop: LoopRV) -> int:
    """The trip count of a loop; 0 where only the run decides it."""
    value = schedule.get(loop).extent
    return int(value) if hasattr(value, "value") else 0


def divisors(number: int, largest: int) -> list[int]:
    """The divisors of number up to largest, ascending; [1] where number is 0."""
    return [d for d in range(1, largest + 1) if number % d == 0 and d <= number] or [1]


def is_reduction(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether the block accumulates."""
    return schedule.get(block).init is not None


def is_copy(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether the block stores each element of another buffer at that element's own place."""
    store = schedule.get(block).body
    value = getattr(store, "value", None)
    if not isinstance(value, tvm.ir.TensorLoad):
        return False
    loaded, stored = [*value.indices, *value.source.shape], [*store.indices, *store.buffer.shape]
    return len(loaded) == len(stored) and all(map(tvm_ffi.structural_equal, loaded, stored))


def spatial_loops(schedule: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """The block's loops as (spatial, reduction), where all spatial ones come first; ([], []) where they do not."""
    kinds = [int(axis.iter_type) for axis in schedule.get(block).iter_vars]
    loops = list(schedule.get_loops(block))
    count = sum(kind == 0 for kind in kinds)
    if len(loops) != len(kinds) or any(kind == 0 for kind in kinds[count:]):
        return [], []
    return loops[:count], loops[count:]
