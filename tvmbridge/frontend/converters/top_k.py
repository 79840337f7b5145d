"""The greatest or least elements along an axis, with their places."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from tvmbridge.frontend.converters.reductions import cast
from tvmbridge.frontend.operator import Converter, Operator

# TVM sorts these; each other type fits one of them with its order, the widest unsigned one by its turned first bit.
_SORTED = ("float32", "float64", "int32", "int64")
_WIDER = {"float16": "float32", "uint32": "int64", **dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32")}


def _turn_first_bit(op: Operator, x: relax.Expr, dtype: str) -> relax.Expr:
    """int64 from uint64 in the same order, and back."""

    def turn(tensor: te.Tensor) -> te.Tensor:
        first = tirx.const(np.iinfo(np.int64).min, "int64")
        return te.compute(
            tensor.shape,
            lambda *index: tirx.reinterpret(dtype, tirx.reinterpret("int64", tensor(*index)) ^ first),
            name="turned",
        )

    return op.compute(turn, x, name="turn_first_bit")


def _top_k(op: Operator) -> list[relax.Expr]:
    """Of equal elements the first comes first."""
    known = op.known(1, "its k") if op.has(1) else np.asarray(op.attribute("k"))
    assert known is not None
    count, dtype = int(known.reshape(-1)[0]), op.dtype(0)
    axis = op.attribute("axis", -1)
    if not 0 <= count <= op.shape(0)[axis]:
        op.refuse(f"its k is {count}, of an axis of {op.shape(0)[axis]} elements")
    x = op.input(0)
    if dtype == "uint64":
        x = _turn_first_bit(op, x, "int64")
    elif dtype not in _SORTED:
        x = cast(op, x, _WIDER[dtype])
    both = op.emit(relax.op.topk(x, count, axis, "both", bool(op.attribute("largest", 1)), "int64"))
    values, places = (op.emit(relax.TupleGetItem(both, index)) for index in range(2))
    values = _turn_first_bit(op, values, dtype) if dtype == "uint64" else cast(op, values, dtype)
    return [values, places]


CONVERTERS: dict[str, Converter] = {"TopK": _top_k}
