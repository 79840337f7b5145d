"""Activations and the operators of any number of operands.

TVM imports Clip and Pad as calls of finished kernels, and Sum, Mean, Max and Min as stack and reduce: no later pass
sees through either. Elu, Selu and ThresholdedRelu it writes in float32 only. Here all are plain operators of Relax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator, numpy_type

_UNBOUNDED = (-np.inf, np.inf)


def _limits(dtype: str) -> tuple[float, float]:
    if dtype.startswith(("float", "bfloat")):
        limits = ml_dtypes.finfo(numpy_type(dtype))
        return float(limits.min), float(limits.max)
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _clip(op: Operator) -> relax.Expr:
    """A bound that is absent is the dtype's own, so that infinities are cut; one that is NaN does not bind."""
    x, dtype = op.input(0), op.dtype(0)
    bounds: list[float | relax.Expr] = []
    for position, name, limit, unbounded in zip((1, 2), ("min", "max"), _limits(op.type(0)), _UNBOUNDED, strict=True):
        known = op.constant(position) if op.has(position) else np.asarray(op.attribute(name, limit))
        if known is None:
            bounds.append(op.input(position))
        else:
            bounds.append(unbounded if np.isnan(known).any() else known.astype(dtype).item())
    low, high = bounds
    if not isinstance(low, relax.Expr) and not isinstance(high, relax.Expr):
        return relax.op.clip(x, tvm.tirx.const(low, dtype), tvm.tirx.const(high, dtype))
    for bound, unbounded, choose in zip(bounds, _UNBOUNDED, (relax.op.maximum, relax.op.minimum), strict=True):
        operand = bound if isinstance(bound, relax.Expr) else relax.const(bound, dtype)
        if dtype.startswith("float") and isinstance(bound, relax.Expr):
            odd = op.emit(relax.op.isnan(operand))
            operand = op.emit(relax.op.where(odd, relax.const(unbounded, dtype), operand))
        x = op.emit(choose(x, operand))
    return x


def _chain(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    def convert(op: Operator) -> relax.Expr:
        return functools.reduce(lambda left, right: op.emit(operator(left, right)), op.inputs)

    return convert


def _mean(op: Operator) -> relax.Expr:
    total, count = _chain(relax.op.add)(op), len(op.operands)
    return relax.op.divide(total, op.const(count)) if count > 1 else total


def _widely(convert: Callable[[Operator, relax.Expr], relax.Expr]) -> Converter:
    """A converter that computes on float32 where float16 is given: its few digits would be lost on the way."""

    def converted(op: Operator) -> relax.Expr:
        if op.dtype(0) != "float16":
            return convert(op, op.input(0))
        wide = op.emit(relax.op.astype(op.input(0), "float32"))
        return relax.op.astype(op.emit(convert(op, wide)), "float16")

    return converted


def _const(number: float, x: relax.Expr) -> relax.Expr:
    return relax.const(number, str(x.ty.dtype))


def _halves(op: Operator, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """max(x, 0) and min(x, 0): each is NaN where x is, and to add them up takes no choice that fused code repeats."""
    zero = _const(0, x)
    return op.emit(relax.op.maximum(x, zero)), op.emit(relax.op.minimum(x, zero))


def _exponential(op: Operator, x: relax.Expr, alpha: float, gamma: float = 1, stretch: float = 1) -> relax.Expr:
    """gamma * (x above 0, alpha * (exp(x / stretch) - 1) elsewhere)."""
    above, below = _halves(op, x)
    if stretch != 1:
        below = op.emit(relax.op.divide(below, _const(stretch, x)))
    grown = op.emit(relax.op.subtract(op.emit(relax.op.exp(below)), _const(1, x)))
    if gamma != 1:
        above = op.emit(relax.op.multiply(above, _const(gamma, x)))
    return relax.op.add(above, op.emit(relax.op.multiply(grown, _const(alpha * gamma, x))))


def _elu(op: Operator, x: relax.Expr) -> relax.Expr:
    return _exponential(op, x, op.attribute("alpha", 1.0))


def _celu(op: Operator, x: relax.Expr) -> relax.Expr:
    alpha = op.attribute("alpha", 1.0)
    return _exponential(op, x, alpha, stretch=alpha)


def _selu(op: Operator, x: relax.Expr) -> relax.Expr:
    alpha = op.attribute("alpha", 1.67326319217681884765625)
    return _exponential(op, x, alpha, op.attribute("gamma", 1.05070102214813232421875))


def _softplus(op: Operator, x: relax.Expr) -> relax.Expr:
    """max(x, 0) + log1p(exp(-|x|)), which neither overflows nor loses its digits far below 0.

    log1p(n) is 2 * artanh(z) with z = n / (n + 2), which is 1/3 at most: its series is summed to the dtype's digits.
    """
    grown = op.emit(relax.op.exp(op.emit(relax.op.negative(op.emit(relax.op.abs(x))))))
    z = op.emit(relax.op.divide(grown, op.emit(relax.op.add(grown, _const(2, x)))))
    square = op.emit(relax.op.multiply(z, z))
    last = 35 if str(x.ty.dtype) == "float64" else 15
    total: relax.Expr = _const(2 / last, x)
    for odd in range(last - 2, 0, -2):
        total = op.emit(relax.op.add(op.emit(relax.op.multiply(total, square)), _const(2 / odd, x)))
    return relax.op.add(op.emit(relax.op.maximum(x, _const(0, x))), op.emit(relax.op.multiply(z, total)))


def _mish(op: Operator, x: relax.Expr) -> relax.Expr:
    """x * tanh(softplus(x)) is x * m / (m + 2) with m = n * (n + 2) and n = exp(x); above 20 that is x."""
    grown = op.emit(relax.op.exp(op.emit(relax.op.minimum(x, _const(20, x)))))
    product = op.emit(relax.op.multiply(grown, op.emit(relax.op.add(grown, _const(2, x)))))
    share = op.emit(relax.op.divide(product, op.emit(relax.op.add(product, _const(2, x)))))
    return relax.op.multiply(x, share)


def _prelu(op: Operator) -> relax.Expr:
    """A slope for each channel, as op-sets before 7 had it, lies along axis 1 where it does not broadcast."""
    above, below = _halves(op, op.input(0))
    slope, given, shape = op.input(1), op.shape(1), op.shape(0)
    if len(given) == 1 and given[0] not in (1, shape[-1]) and len(shape) > 1 and given[0] == shape[1]:
        slope = op.emit(relax.op.reshape(slope, (given[0], *(1 for _ in shape[2:]))))
    return relax.op.add(above, op.emit(relax.op.multiply(below, slope)))


def _thresholded_relu(op: Operator) -> relax.Expr:
    dtype = op.dtype(0)
    above = op.emit(relax.op.greater(op.input(0), relax.const(op.attribute("alpha", 1.0), dtype)))
    return relax.op.where(above, op.input(0), relax.const(0, dtype))


CONVERTERS: dict[str, Converter] = {
    "Celu": _widely(_celu),
    "Clip": _clip,
    "Elu": _widely(_elu),
    "Max": _chain(relax.op.maximum),
    "Mean": _mean,
    "Min": _chain(relax.op.minimum),
    "Mish": _widely(_mish),
    "PRelu": _prelu,
    "Selu": _widely(_selu),
    "Softplus": _widely(_softplus),
    "Sum": _chain(relax.op.add),
    "ThresholdedRelu": _thresholded_relu,
}
