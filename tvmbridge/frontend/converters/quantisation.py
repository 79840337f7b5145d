"""Quantised tensors: to them and back, and products of them, which are exact sums.

What follows a product of integers is written as plain operators, so that it fuses with the product.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from tvm import relax

from tvmbridge.frontend.converters.convolutions import add_bias, convolve
from tvmbridge.frontend.narrow_types import rounded
from tvmbridge.frontend.operator import CARRIERS, Converter, Operator, carrier, element_type, is_constant, numpy_type


def _cast(op: Operator, x: relax.Expr, dtype: str) -> relax.Expr:
    """x in another dtype; of a constant, a constant, which a kernel of one number holds in its code."""
    if is_constant(x):
        return relax.const(x.value.numpy().astype(dtype), dtype)
    return x if str(x.ty.dtype) == dtype else op.emit(relax.op.astype(x, dtype))


def _saturated(
    op: Operator, steps: relax.Expr, dtype: str, zero: relax.Expr | None = None, *, saturate: bool = True
) -> relax.Expr:
    """A quantised tensor in its carrier: rounded half to even, moved by the zero point, cut to the type's limits.

    steps: the values over their scale, in float32 or float64. dtype: the ONNX element type. zero: broadcasts to steps.
    saturate: whether what is beyond a float8 becomes its limit, else infinite or NaN.
    """
    wide = str(steps.ty.dtype)
    if not dtype.startswith(("int", "uint")):
        if zero is not None:
            steps = op.emit(relax.op.add(steps, _cast(op, zero, wide)))
        limit = float(ml_dtypes.finfo(numpy_type(dtype)).max)
        if saturate:
            steps = op.emit(relax.op.clip(steps, -limit, limit))
        return rounded(op.builder, steps, dtype)
    limits = ml_dtypes.iinfo(numpy_type(dtype)) if dtype in CARRIERS else np.iinfo(dtype)
    whole = op.emit(relax.op.round(steps))
    if zero is not None:
        whole = op.emit(relax.op.add(whole, _cast(op, zero, wide)))
    return _cast(op, op.emit(relax.op.clip(whole, float(limits.min), float(limits.max))), carrier(dtype))


def _scalar(op: Operator, position: int) -> relax.Expr | None:
    """A scale or zero point of one element as a scalar; None where it is absent. Refuses one of more elements."""
    if not op.has(position):
        return None
    if math.prod(op.shape(position)) != 1:
        op.refuse(f"its input {position} has more than one element")
    return _reshaped(op, op.input(position), ())


def _reshaped(op: Operator, x: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
    """x in another shape; of a constant, a constant."""
    if is_constant(x):
        return relax.const(x.value.numpy().reshape(shape))
    return x if tuple(map(int, x.ty.shape.values)) == shape else op.emit(relax.op.reshape(x, shape))


def _calculated(op: Operator, operator: str, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """An operator of NumPy's and Relax's name; of constants, a constant, however large."""
    if is_constant(left) and is_constant(right):
        return relax.const(getattr(np, operator)(left.value.numpy(), right.value.numpy()))
    return op.emit(getattr(relax.op, operator)(left, right))


def _spread(op: Operator, position: int) -> relax.Expr | None:
    """A scale or zero point, one for the tensor, for each index of an axis or for each block, to broadcast to it."""
    if not op.has(position):
        return None
    shape, given, value = op.shape(0), op.shape(position), op.input(position)
    axis, block = op.attribute("axis", 1), op.attribute("block_size", 0)
    axis = axis % len(shape) if len(shape) > 1 else 0
    if math.prod(given) == 1:
        return _reshaped(op, value, ())
    if not block:
        if len(given) != 1:
            op.refuse("a scale of several axes without block_size")
        return _reshaped(op, value, tuple(given[0] if i == axis else 1 for i in range(len(shape))))
    if is_constant(value):
        return relax.const(np.repeat(value.value.numpy(), block, axis).take(range(shape[axis]), axis))
    repeated = op.emit(relax.op.repeat(value, block, axis))
    return op.emit(relax.op.strided_slice(repeated, [axis], [0], [shape[axis]]))


def _quantize(op: Operator) -> relax.Expr:
    """The division is done in the scale's precision, or in that of the attribute, as ONNX has it."""
    precision = op.attribute("precision", 0)
    kind = element_type(precision) if precision else op.type(1)
    if kind == "float8_e8m0fnu":
        kind = op.type(0)
    wide = "float64" if kind == "int32" else carrier(kind)
    scale = _spread(op, 1)
    assert scale is not None
    steps = op.emit(relax.op.divide(_cast(op, op.input(0), wide), _cast(op, scale, wide)))
    if kind in CARRIERS:
        steps = rounded(op.builder, steps, kind)
    if wide == "float16":  # which does not hold every sum of the step and a zero point
        steps = _cast(op, steps, "float32")
    return _saturated(op, steps, op.result_type(), _spread(op, 2), saturate=bool(op.attribute("saturate", 1)))


def _dequantize(op: Operator) -> relax.Expr:
    """In float32, whatever the result is: that holds the difference of any two quantised values. Weights are folded."""
    x, scale, zero = _cast(op, op.input(0), "float32"), _spread(op, 1), _spread(op, 2)
    assert scale is not None
    if zero is not None:
        x = _calculated(op, "subtract", x, _cast(op, zero, "float32"))
    x = _calculated(op, "multiply", x, _cast(op, scale, "float32"))
    return _cast(op, x, op.result_dtype())


def _dynamic_quantize(op: Operator) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """Of zeros only, the scale is 1, as ONNX Runtime has it: the definition divides by 0 then."""
    x, zero = op.input(0), op.const(0)
    highest = op.emit(relax.op.maximum(op.emit(relax.op.max(x)), zero))
    lowest = op.emit(relax.op.minimum(op.emit(relax.op.min(x)), zero))
    scale = op.emit(relax.op.divide(op.emit(relax.op.subtract(highest, lowest)), op.const(255)))
    scale = op.emit(relax.op.where(op.emit(relax.op.equal(highest, lowest)), op.const(1), scale))
    steps = op.emit(relax.op.subtract(zero, op.emit(relax.op.divide(lowest, scale))))
    point = _saturated(op, steps, "uint8")
    return _saturated(op, op.emit(relax.op.divide(x, scale)), "uint8", point), scale, point


def _centred(op: Operator, x: relax.Expr, zero: relax.Expr | None, dtype: str = "int32") -> relax.Expr:
    """A quantised tensor less its zero point, of integers in int32 or `dtype`, of float8 in float32."""
    dtype = "float32" if str(x.ty.dtype).startswith("float") else dtype
    x = _cast(op, x, dtype)
    return x if zero is None else _calculated(op, "subtract", x, _cast(op, zero, dtype))


def _by_row(op: Operator, position: int) -> relax.Expr | None:
    """A scale or zero point of a matrix's rows: [rows] is [rows, 1]."""
    if not op.has(position) or len(op.shape(position)) != 1 or op.shape(position)[0] == 1:
        return _by_column(op, position)
    return _reshaped(op, op.input(position), (*op.shape(position), 1))


def _by_column(op: Operator, position: int) -> relax.Expr | None:
    """A scale or zero point of a matrix's columns; None where it is absent."""
    if not op.has(position):
        return None
    return _reshaped(op, op.input(position), ()) if math.prod(op.shape(position)) == 1 else op.input(position)


def _by_channel(op: Operator, position: int, rank: int) -> relax.Expr | None:
    """A scale or zero point of a weight's output channels, the first of `rank` axes."""
    if not op.has(position):
        return None
    one = math.prod(op.shape(position)) == 1
    return _reshaped(op, op.input(position), () if one else (op.shape(position)[0], *(1,) * (rank - 1)))


def _matmul_integer(op: Operator) -> relax.Expr:
    a, b = _centred(op, op.input(0), _by_row(op, 2)), _centred(op, op.input(1), _by_column(op, 3))
    return relax.op.matmul(a, b)


def _conv_integer(op: Operator) -> relax.Expr:
    x, weight = (
        _centred(op, op.input(0), _scalar(op, 2)),
        _centred(op, op.input(1), _by_channel(op, 3, len(op.shape(1)))),
    )
    return convolve(op, x, weight)


def _requantised(
    op: Operator,
    sums: relax.Expr,
    scales: tuple[relax.Expr, relax.Expr, relax.Expr],
    dtype: str,
    zero: relax.Expr | None,
) -> relax.Expr:
    """Sums of products in steps of the result. scales: of both factors and of the result, in one dtype."""
    first, second, made = scales
    factor = op.emit(relax.op.divide(op.emit(relax.op.multiply(first, second)), made))
    steps = op.emit(relax.op.multiply(_cast(op, sums, "float32"), _cast(op, factor, "float32")))
    return _saturated(op, steps, dtype, zero)


def _qlinear_matmul(op: Operator) -> relax.Expr:
    a, b = _centred(op, op.input(0), _by_row(op, 2)), _centred(op, op.input(3), _by_column(op, 5))
    scales = _by_row(op, 1), _by_column(op, 4), _scalar(op, 6)
    zero = _scalar(op, 7)
    assert scales[0] is not None and scales[1] is not None and scales[2] is not None and zero is not None
    return _requantised(op, op.emit(relax.op.matmul(a, b)), scales, op.type(7), zero)


def _sums_in(op: Operator) -> str:
    """The dtype in which QLinearConv adds up: float32 where that holds every sum, since its kernels are the fast ones.

    Known weights tell how far a sum can go. A kernel that computes in another order than the definition's (Winograd)
    rounds a little all the same, by far less than a step of the result.
    """
    weight, zero, bias = op.constant(3), op.constant(5), op.constant(8)
    if weight is None or zero is None or (bias is None and op.has(8)):
        return "int32"
    points = zero.astype(np.int64).reshape((-1, *(1,) * (weight.ndim - 1)))
    furthest = 255 * int(np.abs(weight - points).reshape(len(weight), -1).sum(1).max())
    return (
        "float32" if furthest + (0 if bias is None else int(np.abs(bias.astype(np.int64)).max())) < 2**24 else "int32"
    )


def _qlinear_conv(op: Operator) -> relax.Expr:
    rank, dtype = len(op.shape(0)), _sums_in(op)
    weight = _centred(op, op.input(3), _by_channel(op, 5, rank), dtype)
    sums = convolve(op, _centred(op, op.input(0), _scalar(op, 2), dtype), weight)
    if op.has(8):
        sums = add_bias(op, sums, _cast(op, op.input(8), dtype))
    scales = _scalar(op, 1), _by_channel(op, 4, rank - 1), _scalar(op, 6)
    zero = _scalar(op, 7)
    assert scales[0] is not None and scales[1] is not None and scales[2] is not None and zero is not None
    return _requantised(op, sums, scales, op.type(7), zero)


CONVERTERS: dict[str, Converter] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
