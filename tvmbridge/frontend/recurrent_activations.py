"""The activations that LSTM, GRU and RNN can name, as expressions of one element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import tvm
from tvm import tirx

Activation = Callable[[tvm.ir.Expr], tvm.ir.Expr]
_Formula = Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]


def _const(value: float, like: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.const(value, like.ty)


def _at_least(bound: tvm.ir.Expr, x: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.Max(bound, x)  # which is its second operand where one is NaN


def _relu(x: tvm.ir.Expr, _alpha: tvm.ir.Expr, _beta: tvm.ir.Expr) -> tvm.ir.Expr:
    return _at_least(_const(0, x), x)


def _leaky_relu(x: tvm.ir.Expr, alpha: tvm.ir.Expr, _beta: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.Select(x < _const(0, x), alpha * x, x)


def _thresholded_relu(x: tvm.ir.Expr, alpha: tvm.ir.Expr, _beta: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.Select(x <= alpha, _const(0, x), x)


def _hard_sigmoid(x: tvm.ir.Expr, alpha: tvm.ir.Expr, beta: tvm.ir.Expr) -> tvm.ir.Expr:
    return _at_least(_const(0, x), tirx.Min(_const(1, x), alpha * x + beta))


def _elu(x: tvm.ir.Expr, alpha: tvm.ir.Expr, _beta: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.Select(x < _const(0, x), alpha * (tirx.exp(x) - _const(1, x)), x)


def _softplus(x: tvm.ir.Expr, _alpha: tvm.ir.Expr, _beta: tvm.ir.Expr) -> tvm.ir.Expr:
    """log(1 + e**x), of which e**x alone would overflow."""
    return _at_least(_const(0, x), x) + tirx.log(_const(1, x) + tirx.exp(-tirx.abs(x)))


# Name → formula, and the values of alpha and beta where none are given; None: it has no such parameter.
_FORMULAS: Mapping[str, tuple[_Formula, float | None, float | None]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1.0, 0.0),
    "elu": (_elu, 1.0, None),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "relu": (_relu, None, None),
    "scaledtanh": (lambda x, alpha, beta: alpha * tirx.tanh(beta * x), 1.0, 1.0),
    "sigmoid": (lambda x, _alpha, _beta: tirx.sigmoid(x), None, None),
    "softplus": (_softplus, None, None),
    "softsign": (lambda x, _alpha, _beta: x / (_const(1, x) + tirx.abs(x)), None, None),
    "tanh": (lambda x, _alpha, _beta: tirx.tanh(x), None, None),
    "thresholdedrelu": (_thresholded_relu, 1.0, None),
}


def find_activations(
    names: tuple[str, ...], alphas: tuple[float, ...], betas: tuple[float, ...], clips: tuple[float | None, ...]
) -> list[Activation]:
    """One function for each name; ValueError for a name that ONNX does not know.

    alphas, betas: consumed in order by the activations that have such a parameter; ONNX's defaults where they run out.
    clips: for each name the bound of its argument, either way; None for none. Equal ones give one function.
    """
    left = (list(alphas), list(betas))
    made: dict[tuple[str, float, float, float | None], Activation] = {}
    found = []
    for name, clip in zip(names, clips, strict=True):
        if name.lower() not in _FORMULAS:
            raise ValueError(f"the activation {name!r} is not one of ONNX")
        formula, *defaults = _FORMULAS[name.lower()]
        alpha, beta = (
            0.0 if default is None else given.pop(0) if given else default
            for given, default in zip(left, defaults, strict=True)
        )
        key = (name.lower(), alpha, beta, clip)
        found.append(made.setdefault(key, functools.partial(_apply, formula, alpha, beta, clip)))
    return found


def _apply(formula: _Formula, alpha: float, beta: float, clip: float | None, x: tvm.ir.Expr) -> tvm.ir.Expr:
    if clip is not None:
        x = _at_least(_const(-clip, x), tirx.Min(_const(clip, x), x))
    return formula(x, _const(alpha, x), _const(beta, x))
