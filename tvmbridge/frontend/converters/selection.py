"""Operators whose results have as many elements as values decide: those values must be known at build time."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator


def _compress(op: Operator) -> relax.Expr:
    """The condition may be shorter than the axis, whose other elements then are left out."""
    condition = op.known(1, "its condition, which decides how many elements it gives,")
    if condition is None:
        op.refuse("it has no condition")
    x, axis = op.input(0), op.attribute("axis")
    if axis is None:
        x, axis = op.emit(relax.op.reshape(x, (-1,))), 0
    kept = np.flatnonzero(condition.ravel()[: int(x.ty.shape[axis])])
    return relax.op.take(x, relax.const(kept, "int64"), axis, mode="fast")


def _of_known_values(*operands: str) -> Converter:
    """An operator that is evaluated at build time where its operands are known: here one of them is not."""

    def convert(op: Operator) -> None:
        for position, what in enumerate(operands):
            op.known(position, f"its {what}, which decide how many elements it gives,")
        op.refuse("ONNX's reference does not compute this form of it")

    return convert


CONVERTERS: dict[str, Converter] = {
    "Compress": _compress,
    "NonMaxSuppression": _of_known_values("boxes", "scores", "maxima", "overlaps", "thresholds"),
    "NonZero": _of_known_values("values"),
    "Unique": _of_known_values("values"),
}
