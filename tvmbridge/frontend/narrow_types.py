"""Types narrower than TVM can compute in (bfloat16, float8, 4 bits): their bits to values and back, and rounding.

Any float of 8 bits or fewer is decided by the upper 16 bits of a float32 and by whether a lower one is set: so a table
of 65,536 entries, which ONNX's own conversion fills, rounds to it exactly, whatever the mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from onnx import numpy_helper
from tvm import relax, te, tirx, topi

from tvmbridge.frontend.operator import carrier, numpy_type

_MOVING = frozenset(
    {
        *("Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "If"),
        *("MaxPool", "Pad", "Relu", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice", "Split"),
        *("SpaceToDepth", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Max", "Min", "TopK"),
        *("BitCast", "Cast", "CastLike", "EyeLike", "QuantizeLinear"),
        *("CenterCropPad", "OneHot", "Scatter", "TensorScatter"),
    }
)
_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}  # of types narrower than a byte
Scalar: TypeAlias = Any  # an expression of TIR


def is_exact(op_type: str) -> bool:
    """Whether an operator's results need no rounding: they are among its operands' values, or are rounded by it."""
    return op_type in _MOVING


def decode(builder: relax.BlockBuilder, bits: relax.Expr, dtype: str) -> relax.Expr:
    """The values, in the carrier's dtype, of the bits that an input holds; bits beyond the type's own are ignored."""
    if dtype == "bfloat16":
        return _compute(builder, "decode_bfloat16", _widen, bits)
    codes = np.arange(256).astype(np.uint8) & ((1 << _BITS.get(dtype, 8)) - 1)
    values = codes.view(numpy_type(dtype)).astype(carrier(dtype))
    return _look_up(builder, f"decode_{dtype}", lambda x: x, bits, values)


def encode(builder: relax.BlockBuilder, values: relax.Expr, dtype: str) -> relax.Expr:
    """The bits of values that are held in the carrier's dtype."""
    return narrow(builder, values, dtype)


def rounded(builder: relax.BlockBuilder, values: relax.Expr, dtype: str) -> relax.Expr:
    """Values in the carrier's dtype, rounded to those that the narrow type has; integers lose their upper bits."""
    return decode(builder, narrow(builder, values, dtype), dtype)


def narrow(
    builder: relax.BlockBuilder, values: relax.Expr, dtype: str, *, saturate: bool = False, mode: str = "up"
) -> relax.Expr:
    """The bits of values rounded to a narrow type, as ONNX's Cast rounds them.

    values: in the type's carrier, or in float64. saturate: whether what is beyond a float8 becomes its limit.
    mode: how float8_e8m0fnu rounds: "up", "down" or "nearest".
    """
    if carrier(dtype) != "float32":
        mask = (1 << _BITS[dtype]) - 1
        return _compute(
            builder, f"encode_{dtype}", lambda x: x.astype("uint8") & tirx.const(mask, "uint8"), values, dtype="uint8"
        )
    if dtype == "bfloat16":
        return _compute(builder, "encode_bfloat16", _to_bfloat16, values, dtype="uint16")
    return _look_up(builder, f"encode_{dtype}", _upper_half, values, _narrowing_table(dtype, saturate, mode))


@functools.cache
def _narrowing_table(dtype: str, saturate: bool, mode: str) -> np.ndarray:
    """The type's bits for each upper half of a float32, the last bit of which is set where a lower one is."""
    values = (np.arange(1 << 16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        if dtype == "float8_e8m0fnu":
            return _powers_of_two(values, saturate, mode)
        if saturate:
            return numpy_helper.saturate_cast(values, numpy_type(dtype)).view(np.uint8)
        return values.astype(numpy_type(dtype)).view(np.uint8)


def _powers_of_two(values: np.ndarray, saturate: bool, mode: str) -> np.ndarray:
    """float8_e8m0fnu: the exponents of amounts, from -127 on; 255 is NaN."""
    amounts = np.abs(values.astype(np.float64))
    fractions, exponents = np.frexp(amounts)  # of 0.5 to 1
    moved = {"up": fractions > 0.5, "down": np.zeros(values.shape, bool), "nearest": fractions >= 0.75}[mode]
    codes = exponents - 1 + moved + 127
    low, high = (0, 254) if saturate else (255, 255)
    codes = np.where(amounts < 2.0**-127, low, codes)
    codes = np.where(np.isinf(amounts) | (codes > 254), high, codes)
    return np.where(np.isnan(amounts), 255, codes).astype(np.uint8)


def _compute(
    builder: relax.BlockBuilder, name: str, change: Callable[[Scalar], Scalar], x: relax.Expr, dtype: str = ""
) -> relax.Expr:
    def kernel(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: change(x(*i)), name=name, tag=topi.tag.ELEMWISE)

    return builder.emit_te(kernel, x, primfunc_name_hint=name)


def _look_up(
    builder: relax.BlockBuilder, name: str, index: Callable[[Scalar], Scalar], x: relax.Expr, table: np.ndarray
) -> relax.Expr:
    def kernel(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: table(index(x(*i)).astype("int32")), name=name, tag=topi.tag.INJECTIVE)

    return builder.emit_te(kernel, x, relax.const(table), primfunc_name_hint=name)


def _bits(x: Scalar) -> Scalar:
    return tirx.reinterpret("uint32", x)


def _u32(value: int) -> Scalar:
    return tirx.const(value, "uint32")


def _widen(bits: Scalar) -> Scalar:
    return tirx.reinterpret("float32", bits.astype("uint32") << _u32(16))


def _to_bfloat16(x: Scalar) -> Scalar:
    """Half to even; a NaN stays one whatever its lower bits are."""
    bits = _bits(_odd_float32(x))
    upper = bits >> _u32(16)
    nan = (bits & _u32(0x7FFFFFFF)) > _u32(0x7F800000)
    half_to_even = (bits + _u32(0x7FFF) + (upper & _u32(1))) >> _u32(16)
    return tirx.Select(nan, upper | _u32(0x40), half_to_even).astype("uint16")


def _upper_half(x: Scalar) -> Scalar:
    bits = _bits(_odd_float32(x))
    lower = tirx.Select((bits & _u32(0xFFFF)) != _u32(0), _u32(1), _u32(0))
    return (bits >> _u32(16)) | lower


def _odd_float32(x: Scalar) -> Scalar:
    """A float64 cut to float32, its last bit set where anything was cut: to round that again rounds but once."""
    if str(x.ty) != "float64":
        return x
    near = x.astype("float32")
    back = near.astype("float64")
    away = tirx.abs(back) > tirx.abs(x)
    bits = _bits(near) - tirx.Select(away, _u32(1), _u32(0))
    return tirx.reinterpret("float32", bits | tirx.Select(back != x, _u32(1), _u32(0)))
