"""relax.max and relax.min over axes, which hand a NaN on; TVM's own lose it, and begin at the least finite number.

Floats are compared as integers that have their order, in which a NaN comes before all: a step of the reduction then
names the value that it holds only once, and unrolled ones do not grow into each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax, te


def legalize_extreme(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The kernel of a reduction to the greatest or the least element."""
    greatest = call.op.name == "relax.max"
    rank = call.args[0].ty.ndim
    axes = range(rank) if call.attrs.axis is None else sorted(int(axis) % rank for axis in call.attrs.axis)
    keepdims = bool(call.attrs.keepdims)
    reducer = te.max if greatest else te.min
    dtype = str(call.ty.dtype)
    floats = dtype.startswith("float")

    def reduce_extreme(tensor: te.Tensor) -> te.Tensor:
        ranges = {axis: te.reduce_axis((0, tensor.shape[axis])) for axis in axes}
        kept = [axis for axis in range(rank) if axis not in ranges]
        shape = [1 if axis in ranges else size for axis, size in enumerate(tensor.shape)]
        shape = shape if keepdims else [tensor.shape[axis] for axis in kept]

        def element(*index: Any) -> tvm.tirx.PrimExpr:
            at = dict(zip(range(rank) if keepdims else kept, index, strict=True)) | ranges
            value = tensor(*(at[axis] for axis in range(rank)))
            return reducer(_ordered(value, dtype, greatest) if floats else value, list(ranges.values()))

        found = te.compute(shape, element, name="extreme")
        return te.compute(shape, lambda *i: _from_ordered(found(*i), dtype), name="value") if floats else found

    return bb.call_te(reduce_extreme, call.args[0], primfunc_name_hint=call.op.name.removeprefix("relax."))


def _ordered(value: tvm.tirx.PrimExpr, dtype: str, greatest: bool) -> tvm.tirx.PrimExpr:
    """An integer of a float's width for it, greater for a greater one; a NaN's is the greatest or the least of all."""
    limits = np.iinfo(f"int{dtype[5:]}")
    bits = tvm.tirx.reinterpret(limits.dtype.name, value)
    first = tvm.tirx.const(int(limits.max if greatest else limits.min), limits.dtype.name)
    return tvm.tirx.Select(tvm.tirx.isnan(value), first, _turned(bits, limits))


def _from_ordered(key: tvm.tirx.PrimExpr, dtype: str) -> tvm.tirx.PrimExpr:
    """The float that `_ordered` gave this integer; the integers of NaN are those of two NaNs."""
    return tvm.tirx.reinterpret(dtype, _turned(key, np.iinfo(f"int{dtype[5:]}")))


def _turned(bits: tvm.tirx.PrimExpr, limits: np.iinfo[Any]) -> tvm.tirx.PrimExpr:
    """Negative numbers with the bits below the sign inverted: a float's bits hold its magnitude; undoes itself."""
    name = limits.dtype.name
    sign = tvm.tirx.shift_right(bits, tvm.tirx.const(limits.bits - 1, name))
    return tvm.tirx.bitwise_xor(bits, tvm.tirx.bitwise_and(sign, tvm.tirx.const(int(limits.max), name)))
