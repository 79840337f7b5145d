"""Casts between element types, by value and by bits, with one answer for what ONNX leaves open.

A float beyond an integer's range, or NaN, becomes the lowest number of int32 (of int64 for the wider types), of which
an integer of fewer bits keeps the lower ones: what NumPy and ONNX Runtime give on x86, and not LLVM's poison.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te, tirx, topi

from tvmbridge.frontend.narrow_types import decode, narrow, rounded
from tvmbridge.frontend.operator import CARRIERS, Converter, Operator, carrier, element_type, numpy_type

_FLOAT8 = frozenset({"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"})
_LIMIT = {"int32": 2.0**31, "int64": 2.0**63}


def _cast(op: Operator) -> relax.Expr:
    return _convert(op, element_type(op.attribute("to")))


def _cast_like(op: Operator) -> relax.Expr:
    return _convert(op, op.type(1))


def _convert(op: Operator, dtype: str) -> relax.Expr:
    x, given = op.input(0), op.dtype(0)
    if dtype == op.type(0):
        return x
    if dtype == "bool":
        return _is_set(op, x)
    if dtype in CARRIERS and carrier(dtype) == "float32":
        if given not in ("float32", "float64"):
            x = op.emit(relax.op.astype(x, "float32"))
        saturate = dtype in _FLOAT8 and bool(op.attribute("saturate", 1))
        bits = narrow(op.builder, x, dtype, saturate=saturate, mode=op.attribute("round_mode", "up"))
        return decode(op.builder, bits, dtype)
    if given.startswith("float") and not carrier(dtype).startswith("float"):
        x = op.compute(truncate, x, carrier(dtype), name=f"cast_to_{dtype}")
    elif given != carrier(dtype):
        x = op.emit(relax.op.astype(x, carrier(dtype)))
    return rounded(op.builder, x, dtype) if dtype in CARRIERS else x


def _is_set(op: Operator, x: relax.Expr) -> relax.Expr:
    """Whether a number is not 0; of NaN, too, which compiled code finds neither equal nor unequal to it."""
    if op.dtype(0) == "bool":
        return x
    unequal = op.emit(relax.op.not_equal(x, op.const(0)))
    return relax.op.logical_or(unequal, op.emit(relax.op.isnan(x))) if op.dtype(0).startswith("float") else unequal


def _same_bits(value: tvm.ir.Expr) -> tvm.ir.Expr:
    """The uint64 of an int64's bits: TVM fails where it casts a negative constant, or reinterprets one that is 0."""
    sign = tirx.Select(value < 0, tirx.const(2**63, "uint64"), tirx.const(0, "uint64"))
    return tirx.bitwise_or(tirx.bitwise_and(value, tirx.const(2**63 - 1, "int64")).astype("uint64"), sign)


def truncate(x: te.Tensor, dtype: str) -> te.Tensor:
    """Floats to integers: towards 0, and one answer for what is beyond their range."""
    wide = "int32" if np.dtype(dtype).itemsize < 4 or dtype == "int32" else "int64"

    def truncated(value: tvm.ir.Expr) -> tvm.ir.Expr:
        value = value.astype("float32") if str(value.ty) == "float16" else value
        float_type, limit = str(value.ty), _LIMIT[wide]
        low = tirx.const(-limit, float_type)

        def within(value: tvm.ir.Expr) -> tvm.ir.Expr:
            inside = tirx.all(value >= low, value < tirx.const(limit, float_type))
            return tirx.Select(inside, value, low).astype(wide)

        if dtype != "uint64":
            return within(value).astype(dtype)
        lower, upper = (_same_bits(within(part)) for part in (value, value - tirx.const(limit, float_type)))
        return tirx.Select(value >= tirx.const(limit, float_type), upper ^ tirx.const(2**63, "uint64"), lower)

    return te.compute(x.shape, lambda *i: truncated(x(*i)), name="cast", tag=topi.tag.ELEMWISE)


def _bit_cast(op: Operator) -> relax.Expr:
    source, dtype, x = op.type(0), element_type(op.attribute("to")), op.input(0)
    if source == dtype:
        return x
    if numpy_type(source).itemsize != numpy_type(dtype).itemsize:
        op.refuse(f"elements of {source} and of {dtype} differ in size")
    if source in CARRIERS:
        x = narrow(op.builder, x, source)
    bits = f"uint{8 * numpy_type(dtype).itemsize}"
    if dtype in CARRIERS:
        return decode(op.builder, op.compute(_reinterpret, x, bits, name="bits") if x.ty.dtype != bits else x, dtype)
    if dtype == "bool":
        return relax.op.not_equal(op.emit(relax.op.astype(x, "uint8")), relax.const(0, "uint8"))
    if source == "bool":
        return relax.op.astype(x, dtype)
    return op.compute(_reinterpret, x, dtype, name="bit_cast")


def _reinterpret(x: te.Tensor, dtype: str) -> te.Tensor:
    return te.compute(x.shape, lambda *i: tirx.reinterpret(dtype, x(*i)), name="bit_cast", tag=topi.tag.ELEMWISE)


CONVERTERS: dict[str, Converter] = {
    "BitCast": _bit_cast,
    "Cast": _cast,
    "CastLike": _cast_like,
}
