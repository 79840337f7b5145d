"""Activations and the operators of any number of operands.

TVM imports Clip and Pad as calls of finished kernels, and Sum, Mean, Max and Min as stack and reduce: no later pass
sees through either. Elu, Selu and ThresholdedRelu it writes in float32 only. Here all are plain operators of Relax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator

_UNBOUNDED = (-np.inf, np.inf)


def _limits(dtype: str) -> tuple[float, float]:
    if dtype.startswith("float"):
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _clip(op: Operator) -> relax.Expr:
    """A bound that is absent is the dtype's own, so that infinities are cut; one that is NaN does not bind."""
    x, dtype = op.input(0), op.dtype(0)
    bounds: list[float | relax.Expr] = []
    for position, name, limit, unbounded in zip((1, 2), ("min", "max"), _limits(dtype), _UNBOUNDED, strict=True):
        known = op.constant(position) if op.has(position) else np.asarray(op.attribute(name, limit))
        if known is None:
            bounds.append(op.input(position))
        else:
            bounds.append(unbounded if np.isnan(known).any() else known.item())
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


def _halves(op: Operator, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """max(x, 0) and min(x, 0): each is NaN where x is, and to add them up takes no choice that fused code repeats."""
    zero = relax.const(0, op.dtype(0))
    return op.emit(relax.op.maximum(x, zero)), op.emit(relax.op.minimum(x, zero))


def _exponential(op: Operator, x: relax.Expr, alpha: float, gamma: float) -> relax.Expr:
    """gamma * (x above 0, alpha * (exp(x) - 1) elsewhere)."""
    dtype = op.dtype(0)
    above, below = _halves(op, x)
    grown = op.emit(relax.op.subtract(op.emit(relax.op.exp(below)), relax.const(1, dtype)))
    if gamma != 1:
        above = op.emit(relax.op.multiply(above, relax.const(gamma, dtype)))
    return relax.op.add(above, op.emit(relax.op.multiply(grown, relax.const(alpha * gamma, dtype))))


def _elu(op: Operator) -> relax.Expr:
    return _exponential(op, op.input(0), op.attribute("alpha", 1.0), 1)


def _selu(op: Operator) -> relax.Expr:
    alpha = op.attribute("alpha", 1.67326319217681884765625)
    return _exponential(op, op.input(0), alpha, op.attribute("gamma", 1.05070102214813232421875))


def _prelu(op: Operator) -> relax.Expr:
    above, below = _halves(op, op.input(0))
    return relax.op.add(above, op.emit(relax.op.multiply(below, op.input(1))))


def _thresholded_relu(op: Operator) -> relax.Expr:
    dtype = op.dtype(0)
    above = op.emit(relax.op.greater(op.input(0), relax.const(op.attribute("alpha", 1.0), dtype)))
    return relax.op.where(above, op.input(0), relax.const(0, dtype))


CONVERTERS: dict[str, Converter] = {
    "Clip": _clip,
    "Elu": _elu,
    "Max": _chain(relax.op.maximum),
    "Mean": _mean,
    "Min": _chain(relax.op.minimum),
    "PRelu": _prelu,
    "Selu": _selu,
    "Sum": _chain(relax.op.add),
    "ThresholdedRelu": _thresholded_relu,
}
