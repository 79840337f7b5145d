"""Which of a kernel's float32 values are float16 widened, and how they stay float16 where they are kept.

A kernel of `precision: float16` widens what it loads before anything else, the border of a convolution included. A
schedule that keeps such values in shared memory for tensor cores wants them as they were.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

from tvmbridge.lowering.precision import HALF, LARGEST, WHOLE
from tvmbridge.schedules.loops.expressions import is_choice, loads


def half_factors(function: tirx.PrimFunc) -> frozenset[str]:
    """The blocks, by name, that hold nothing but widened float16 in a buffer from which sums are computed."""
    blocks: list[SBlock] = []
    tvm_ffi.structural_walk(function.body, (SBlock, blocks.append))
    stored = [(block, block.body) for block in blocks if isinstance(block.body, tirx.BufferStore)]
    written = [store.buffer for _, store in stored]
    multiplied = [load.source for block, store in stored if block.init is not None for load in loads(store.value)]
    names, widened = set[str](), list[tvm.ir.Var]()
    for block, store in stored:
        alone = sum(buffer.same_as(store.buffer) for buffer in written) == 1
        kept = not any(parameter.same_as(store.buffer) for parameter in function.params)
        if block.init is None and alone and kept and as_half(store.value, widened) is not None:
            widened.append(store.buffer)
            if any(buffer.same_as(store.buffer) for buffer in multiplied):
                names.add(block.name_hint)
    return frozenset(names)


def without_round_trips(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function without casts of float16 to float32 and back: these stand in the way of wide loads."""

    def rewrite(cast: tirx.Cast) -> tvm.ir.Expr:
        half = as_half(cast.value) if str(cast.ty.dtype) == HALF else None
        return cast if half is None else half

    return tvm_ffi.structural_map(function, (tirx.Cast, rewrite))


def as_half(value: tvm.ir.Expr, widened: Collection[tvm.ir.Var] = ()) -> tvm.ir.Expr | None:
    """The float16 that the float32 value is; None where it may be another number. widened: buffers of such values."""
    if isinstance(value, tirx.Cast) and str(value.ty.dtype) == WHOLE:
        return value.value if str(value.value.ty.dtype) == HALF else None
    if isinstance(value, tvm.ir.TensorLoad):
        kept = any(value.source.same_as(buffer) for buffer in widened)
        return tirx.Cast(HALF, value) if kept else None
    if isinstance(value, tirx.FloatImm) and str(value.ty.dtype) == WHOLE:
        exact = abs(value.value) <= LARGEST and float(np.float16(value.value)) == value.value
        return tirx.const(value.value, HALF) if exact else None
    if is_choice(value) or isinstance(value, tirx.Select):
        chosen = value.args if is_choice(value) else (value.condition, value.true_value, value.false_value)
        yes, no = (as_half(side, widened) for side in chosen[1:])
        if yes is not None and no is not None:
            return (tirx.if_then_else if is_choice(value) else tirx.Select)(chosen[0], yes, no)
    return None
