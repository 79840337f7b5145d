"""Operators that make tensors of shapes and numbers: constants, ranges, identities, triangles, one-hot codes."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te, tirx

from tvmbridge.frontend.operator import Converter, Operator


def _constant_of_shape(op: Operator) -> relax.Expr:
    op.known(0, "its shape")
    value, dtype = np.asarray(op.attribute("value", np.float32(0))), op.result_dtype()
    return relax.op.full(op.result_shape(), relax.const(value.reshape(()).astype(dtype), dtype), dtype)


def _progression(start: float, delta: float, count: int, dtype: str) -> te.Tensor:
    first, step = tirx.const(start, dtype), tirx.const(delta, dtype)
    return te.compute((count,), lambda i: first + i.astype(dtype) * step, name="range")


def _range(op: Operator) -> relax.Expr:
    """The extent is computed in the operands' own precision, as ONNX Runtime does."""
    start, limit, delta = (op.known(k, what) for k, what in enumerate(("its start", "its limit", "its delta")))
    if start is None or limit is None or delta is None:
        op.refuse("it lacks an operand")
    (difference,) = (limit - start).ravel().tolist()
    count = max(math.ceil(difference / delta.item()), 0)
    return op.compute(_progression, start.item(), delta.item(), count, op.dtype(0), name="range")


def _eye_like(op: Operator) -> relax.Expr:
    rows, columns = op.shape(0)
    dtype = op.result_dtype()
    return relax.const(np.eye(rows, columns, op.attribute("k", 0), dtype), dtype)


def _trilu(op: Operator) -> relax.Expr:
    """Which diagonal bounds the triangle may be known at run time only."""
    rows, columns = op.shape(0)[-2:]
    diagonals = np.arange(columns) - np.arange(rows)[:, None]
    known = op.constant(1) if op.has(1) else np.array(0)
    upper, zero = op.attribute("upper", 1), op.const(0)
    if known is not None:
        bound = known.item()
        kept: relax.Expr = relax.const(diagonals >= bound if upper else diagonals <= bound, "bool")
    else:
        bound = op.emit(relax.op.reshape(op.input(1), ()))
        compare = relax.op.greater_equal if upper else relax.op.less_equal
        kept = op.emit(compare(relax.const(diagonals, "int64"), bound))
    return relax.op.where(kept, op.input(0), zero)


def _one_hot(op: Operator) -> relax.Expr:
    """An index below zero counts from the end; one that is out of range is nowhere hot."""
    given = op.known(1, "its depth")
    if given is None:
        op.refuse("it has no depth")
    depth, rank = int(given.item()), len(op.shape(0))
    axis = op.attribute("axis", -1) % (rank + 1)
    indices = op.input(0)
    if op.dtype(0) != "int64":
        indices = op.emit(relax.op.astype(indices, "int64"))
    negative = op.emit(relax.op.less(indices, relax.const(0, "int64")))
    wrapped = op.emit(relax.op.add(indices, relax.const(depth, "int64")))
    indices = op.emit(relax.op.expand_dims(op.emit(relax.op.where(negative, wrapped, indices)), axis))
    places = np.arange(depth).reshape([-1 if k == axis else 1 for k in range(rank + 1)])
    hot = op.emit(relax.op.equal(indices, relax.const(places, "int64")))
    values = op.constant(2)
    off, on = (
        (op.const(value, op.dtype(2)) for value in values)
        if values is not None
        else (op.emit(relax.op.take(op.input(2), relax.const(k, "int64"), 0)) for k in range(2))
    )
    return relax.op.where(hot, on, off)


CONVERTERS: dict[str, Converter] = {
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "Range": _range,
    "Trilu": _trilu,
}
