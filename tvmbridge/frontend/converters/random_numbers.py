"""Operators that draw random numbers: refused by name. Dropout is taken where it only infers, and drops nothing."""

from __future__ import annotations

from typing import NoReturn

from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator


def _refuse(op: Operator) -> NoReturn:
    op.refuse("it draws random numbers, and a compiled model gives the same results for the same inputs")


def _dropout(op: Operator) -> tuple[relax.Expr, relax.Expr | None]:
    """The mask has ones of the data's type before op-set 10, and is true everywhere from then on."""
    if op.version < 7:
        drops = not op.attribute("is_test", 0) and op.attribute("ratio", 0.5) != 0
    else:
        training = op.known(2, "whether it trains")
        drops = training is not None and bool(training.any())
        if drops and op.has(1):
            ratio = op.known(1, "the ratio of a Dropout that trains")
            drops = ratio is None or bool(ratio.any())
    if drops:
        op.refuse("in training mode it draws random numbers")
    x = op.input(0)
    if not any(op.used[1:]):
        return x, None
    dtype = "bool" if op.version >= 10 else op.dtype(0)
    return x, op.emit(relax.op.full(op.shape(0), relax.const(1, dtype), dtype))


CONVERTERS: dict[str, Converter] = {
    "Bernoulli": _refuse,
    "Dropout": _dropout,
    "Multinomial": _refuse,
    "RandomNormal": _refuse,
    "RandomNormalLike": _refuse,
    "RandomUniform": _refuse,
    "RandomUniformLike": _refuse,
}
