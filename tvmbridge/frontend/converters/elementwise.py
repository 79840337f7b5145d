"""Arithmetic element by element where TVM's operators differ from ONNX's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from tvm import relax, te, tirx, topi

from tvmbridge.frontend.converters.casts import truncate
from tvmbridge.frontend.operator import Converter, Operator

Scalar: TypeAlias = Any  # an expression of TIR
_SMALL_POWERS = (3, 4)  # of floats: cheaper and no less exact as products, and TVM warns of such powers on stderr
_MULTIPLIED = 64  # the largest exponent of integers that is multiplied out


def _broadcast(op: Operator, name: str, combine: Callable[[Scalar, Scalar], Scalar]) -> relax.Expr:
    """A kernel of two operands, of ONNX's broadcasting."""
    shape = np.broadcast_shapes(op.shape(0), op.shape(1))

    def at(tensor: te.Tensor, indices: tuple[Scalar, ...]) -> Scalar:
        own = indices[len(indices) - len(tensor.shape) :]
        return tensor(*(0 if int(extent) == 1 else i for i, extent in zip(own, tensor.shape, strict=True)))

    def kernel(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: combine(at(x, i), at(y, i)), name=name, tag=topi.tag.BROADCAST)

    return op.compute(kernel, op.input(0), op.input(1), name=name)


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def _modulo(op: Operator) -> relax.Expr | None:
    """All but the floored rest of floats is TVM's to compute: its own is NaN of an infinite divisor."""
    if op.attribute("fmod", 0) or not _is_float(op.dtype(0)):
        return None
    return _broadcast(op, "modulo", _floored_rest)


def _floored_rest(x: Scalar, y: Scalar) -> Scalar:
    """The rest has the sign of y; an infinite y is the rest where the signs differ."""
    dtype = str(x.ty)
    if dtype == "float16":
        return _floored_rest(x.astype("float32"), y.astype("float32")).astype(dtype)
    rest = tirx.Var("rest", dtype)
    zero = tirx.const(0, dtype)
    amount = tirx.abs(rest)  # TVM takes constants of 0 and -0 for the same
    signed_zero = tirx.Select(y < zero, amount * tirx.const(-1, dtype), amount)
    differ = tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero))
    moved = tirx.Select(differ, rest + y, rest)
    return tirx.Let(rest, tirx.truncmod(x, y), tirx.Select(rest == zero, signed_zero, moved))


def _power(op: Operator) -> relax.Expr | None:
    """Of integers to a known whole exponent exactly, but for an overflow; all else in floats, as ONNX Runtime does."""
    base, exponent = op.dtype(0), op.dtype(1)
    known = op.constant(1)
    if base in ("float32", "float64") and known is not None and known.size == 1 and known.item() in _SMALL_POWERS:
        return _known_power(op, int(known.item()))
    if _is_float(base) and (_is_float(exponent) or _is_small(op)):
        return None if base == exponent else relax.op.power(*_cast(op, base))
    if known is not None and not _is_float(exponent) and known.size == 1 and 0 <= known.item() <= _MULTIPLIED:
        return _known_power(op, known.item())
    made = op.emit(relax.op.power(*_cast(op, "float64")))
    return relax.op.astype(made, base) if _is_float(base) else op.compute(truncate, made, base, name=f"cast_to_{base}")


def _cast(op: Operator, dtype: str) -> list[relax.Expr]:
    return [op.emit(relax.op.astype(op.input(position), dtype)) for position in (0, 1)]


def _known_power(op: Operator, exponent: int) -> relax.Expr:
    """The first operand to a whole power, in the shape of both."""
    product = _repeated_product(op, op.input(0), exponent)
    shape = np.broadcast_shapes(op.shape(0), op.shape(1))
    return product if shape == op.shape(0) else relax.op.broadcast_to(product, shape)


def _repeated_product(op: Operator, x: relax.Expr, count: int) -> relax.Expr:
    """x as often as counted, by squaring."""
    if count == 0:
        return op.emit(relax.op.ones_like(x))
    if count == 1:
        return x
    half = _repeated_product(op, x, count // 2)
    square = op.emit(relax.op.multiply(half, half))
    return op.emit(relax.op.multiply(square, x)) if count % 2 else square


def _is_small(op: Operator) -> bool:
    """Whether a float16 holds every exponent exactly."""
    known = op.constant(1)
    if known is not None:
        return bool(np.all(np.abs(known.astype(np.float64)) <= 2048))
    return op.dtype(1) in ("int8", "uint8")


def _bit_shift(op: Operator) -> relax.Expr:
    """A shift by less than 0, or by the width or more, leaves what the sign's extension alone does."""
    dtype, left = op.dtype(0), op.attribute("direction") == "LEFT"
    is_signed, width = dtype.startswith("int"), 8 * np.dtype(dtype).itemsize

    def shifted(x: Scalar, y: Scalar) -> Scalar:
        zero, last = tirx.const(0, dtype), tirx.const(width - 1, dtype)
        within = tirx.all(y >= zero, y <= last) if is_signed else y <= last
        amount = tirx.Select(within, y, last)
        if is_signed and not left:
            return x >> amount
        return tirx.Select(within, (x << amount) if left else (x >> amount), zero)

    return _broadcast(op, "bit_shift", shifted)


def _sign(op: Operator) -> relax.Expr:
    """Of NaN NaN, as NumPy and ONNX Runtime give; TVM gives 0."""
    x, dtype = op.input(0), op.dtype(0)
    if dtype.startswith("uint"):
        return relax.op.minimum(x, op.const(1))
    if not _is_float(dtype):
        return relax.op.sign(x)
    negative = op.emit(relax.op.less(x, op.const(0)))
    below = op.emit(relax.op.where(negative, op.const(-1), x))
    return relax.op.where(op.emit(relax.op.greater(x, op.const(0))), op.const(1), below)


def _is_inf(op: Operator) -> relax.Expr:
    x = op.input(0)
    positive, negative = bool(op.attribute("detect_positive", 1)), bool(op.attribute("detect_negative", 1))
    if positive and negative:
        return relax.op.isinf(x)
    if not positive and not negative:
        return relax.op.zeros(op.shape(0), "bool")
    return relax.op.equal(x, op.const(np.inf if positive else -np.inf))


def _not(op: Operator) -> relax.Expr:
    """TVM turns what denies a comparison into the opposite one, which with NaN is as false: it sees no bits through."""
    return relax.op.bitwise_xor(op.input(0), relax.const(True, "bool"))


def _equal(op: Operator) -> relax.Expr | None:
    """TVM takes every number to equal itself, and NaN does not; booleans it compares in a way that LLVM refuses."""
    x, y = op.input(0), op.input(1)
    if op.dtype(0) == "bool":
        return relax.op.bitwise_xor(op.emit(relax.op.bitwise_xor(x, y)), relax.const(True, "bool"))
    if _is_float(op.dtype(0)) and x.same_as(y):
        return relax.op.bitwise_xor(op.emit(relax.op.isnan(x)), relax.const(True, "bool"))
    return None


def _atanh(op: Operator) -> relax.Expr:
    """log1p(2a / (1 - a)) / 2 of the amount, with its sign: TVM's quotient of sums loses all digits near 0."""

    def scalar(x: Scalar) -> Scalar:
        dtype = str(x.ty)
        if dtype == "float16":
            return scalar(x.astype("float32")).astype(dtype)
        one, amount = tirx.const(1, dtype), tirx.abs(x)
        grown, sum_ = tirx.Var("grown", dtype), tirx.Var("sum", dtype)
        # log1p(u): the error of 1 + u is the same above as below the bar, and leaves the quotient.
        logarithm = tirx.Select(sum_ == one, grown, grown * tirx.log(sum_) / (sum_ - one))
        # Not isinf: TVM makes no vectors of a product with a choice by it, where one is for all of a vector.
        half = tirx.const(0.5, dtype) * tirx.Select(grown == tirx.const(math.inf, dtype), grown, logarithm)
        made = tirx.Select(x < tirx.const(0, dtype), -half, half)
        return tirx.Let(grown, (amount + amount) / (one - amount), tirx.Let(sum_, one + grown, made))

    def atanh(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: scalar(x(*i)), name="atanh", tag=topi.tag.ELEMWISE)

    return op.compute(atanh, op.input(0))


CONVERTERS: dict[str, Converter] = {
    "Atanh": _atanh,
    "BitShift": _bit_shift,
    "Equal": _equal,
    "GreaterOrEqual": _equal,
    "IsInf": _is_inf,
    "LessOrEqual": _equal,
    "Mod": _modulo,
    "Not": _not,
    "Pow": _power,
    "Sign": _sign,
}
