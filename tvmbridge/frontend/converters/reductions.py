"""Reductions: sums, products, extremes and norms over axes, and the positions of extremes.

Sums are Relax's own, which fuse. Extremes are not: TVM's lose a NaN, begin at the least finite number, so that a row of
negative infinities gives that, and have -1 for its position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te

from tvmbridge.frontend.operator import Converter, Operator

_Reduce = Callable[[Operator, relax.Expr, list[int], bool], relax.Expr]
_Step = Callable[[Operator, relax.Expr], relax.Expr]


def is_float(dtype: str) -> bool:
    """Whether a dtype is one of floating point."""
    return dtype.startswith("float")


def cast(op: Operator, x: relax.Expr, dtype: str) -> relax.Expr:
    """The tensor in another dtype; itself where it has it."""
    return x if str(x.ty.dtype) == dtype else op.emit(relax.op.astype(x, dtype))


def lowest(dtype: str) -> Any:
    """The least value of a dtype."""
    if is_float(dtype):
        return -np.inf
    return False if dtype == "bool" else int(np.iinfo(dtype).min)


def highest(dtype: str) -> Any:
    """The greatest value of a dtype."""
    if is_float(dtype):
        return np.inf
    return True if dtype == "bool" else int(np.iinfo(dtype).max)


def extreme(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool, *, greatest: bool) -> relax.Expr:
    """The greatest or least element over axes; NaN where there is one (`lowering/extremes.py`)."""
    dtype = str(x.ty.dtype)
    if dtype in ("bool", "float16"):
        wide = "uint8" if dtype == "bool" else "float32"
        return cast(op, extreme(op, cast(op, x, wide), axes, keepdims, greatest=greatest), dtype)
    return op.emit((relax.op.max if greatest else relax.op.min)(x, axes, keepdims))


def position_of_extreme(
    op: Operator, x: relax.Expr, axis: int, keepdims: bool, *, greatest: bool, last: bool
) -> relax.Expr:
    """Where along an axis the greatest or least element is, int64; of equal ones the first or last; NaN before all.

    The element is found first and its place then: no step of a reduction has two results, which cannot be vectors.
    """
    dtype, count = str(x.ty.dtype), int(x.ty.shape.values[axis])
    reducer, elsewhere = (te.max, -1) if last else (te.min, count)

    def position(tensor: te.Tensor, found: te.Tensor) -> te.Tensor:
        along = te.reduce_axis((0, count))
        shape = [size for number, size in enumerate(tensor.shape) if number != axis]
        shape = [*shape[:axis], 1, *shape[axis:]] if keepdims else shape

        def element(*index: Any) -> tvm.tirx.PrimExpr:
            outer, inner = index[:axis], index[axis + 1 :] if keepdims else index[axis:]
            value, wanted = tensor(*outer, along.var, *inner), found(*outer, 0, *inner)
            here = value == wanted
            if is_float(dtype):
                here = tvm.tirx.any(here, tvm.tirx.isnan(value))  # a row that has a NaN has no other extreme
            place = along.var.astype("int64")
            return reducer(tvm.tirx.Select(here, place, tvm.tirx.const(elsewhere, "int64")), axis=along)

        return te.compute(shape, element, name="position")

    top = extreme(op, x, [axis], True, greatest=greatest)
    return op.compute(position, x, top, name="argmax" if greatest else "argmin")


def _axes(op: Operator) -> list[int]:
    """The axes to reduce, counted from the front, in order."""
    given = op.known(1, "its axes") if op.has(1) else op.attribute("axes")
    rank = len(op.shape(0))
    listed = [] if given is None else [int(axis) for axis in np.asarray(given).reshape(-1)]
    if not listed:
        return [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    if any(not -rank <= axis < rank for axis in listed):
        op.refuse(f"its axes {listed} are not all of a tensor of rank {rank}")
    return sorted({axis % rank for axis in listed})


def _same(_op: Operator, x: relax.Expr) -> relax.Expr:
    return x


def _abs(op: Operator, x: relax.Expr) -> relax.Expr:
    return x if str(x.ty.dtype).startswith("uint") else op.emit(relax.op.abs(x))


def _square(op: Operator, x: relax.Expr) -> relax.Expr:
    return op.emit(relax.op.multiply(x, x))


def _in_float(operator: Callable[[relax.Expr], relax.Expr]) -> _Step:
    """An operator of floating point; old op-sets let integers have it, too."""

    def step(op: Operator, x: relax.Expr) -> relax.Expr:
        return op.emit(operator(x if is_float(str(x.ty.dtype)) else cast(op, x, "float64")))

    return step


def _total(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return op.emit(relax.op.sum(x, axes, keepdims))


def _product(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return op.emit(relax.op.prod(x, axes, keepdims))


def _mean(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    """Of integers cut to an integer."""
    if is_float(str(x.ty.dtype)):
        return op.emit(relax.op.mean(x, axes, keepdims))
    count = int(np.prod([int(x.ty.shape.values[axis]) for axis in axes]))

    def divide(total: te.Tensor) -> te.Tensor:
        divisor = tvm.tirx.const(count, total.dtype)
        return te.compute(total.shape, lambda *index: tvm.tirx.truncdiv(total(*index), divisor), name="mean")

    return op.compute(divide, _total(op, x, axes, keepdims), name="mean_of_integers")


def _log_sum_exp(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    """Relative to the greatest element where that is finite: no exponential overflows."""
    if not is_float(str(x.ty.dtype)):
        x = cast(op, x, "float64")
    dtype = str(x.ty.dtype)
    top = extreme(op, x, axes, True, greatest=True)
    finite = op.emit(relax.op.isfinite(top))
    top = op.emit(relax.op.where(finite, top, relax.const(0, dtype)))
    powers = op.emit(relax.op.exp(op.emit(relax.op.subtract(x, top))))
    logs = op.emit(relax.op.log(_total(op, powers, axes, True)))
    found = op.emit(relax.op.add(logs, top))
    return found if keepdims else op.emit(relax.op.squeeze(found, axes))


def _greatest(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return extreme(op, x, axes, keepdims, greatest=True)


def _least(op: Operator, x: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return extreme(op, x, axes, keepdims, greatest=False)


def _reduction(
    reduce: _Reduce, of_nothing: Callable[[str], Any], before: _Step = _same, after: _Step = _same
) -> Converter:
    """after(reduce(before(x))), float16 in float32. of_nothing: what an empty tensor of a dtype gives."""

    def convert(op: Operator) -> relax.Expr:
        axes, shape, dtype = _axes(op), op.shape(0), op.dtype(0)
        keepdims = bool(op.attribute("keepdims", 1))
        if any(shape[axis] == 0 for axis in axes):
            kept = [1 if axis in axes else size for axis, size in enumerate(shape) if keepdims or axis not in axes]
            return op.const(np.full(kept, of_nothing(dtype)))
        x = before(op, cast(op, op.input(0), "float32" if dtype == "float16" else dtype))
        if axes:
            x = reduce(op, x, axes, keepdims)
        return cast(op, after(op, x), dtype)

    return convert


def _position(*, greatest: bool) -> Converter:
    def convert(op: Operator) -> relax.Expr:
        if not op.shape(0):
            return relax.const(np.int64(0), "int64")
        axis = op.attribute("axis", 0) % len(op.shape(0))
        if op.shape(0)[axis] == 0:
            op.refuse("an axis without elements has no greatest or least")
        last, keepdims = bool(op.attribute("select_last_index", 0)), bool(op.attribute("keepdims", 1))
        return position_of_extreme(op, op.input(0), axis, keepdims, greatest=greatest, last=last)

    return convert


def _hardmax(op: Operator) -> relax.Expr:
    """1 at the first greatest element, 0 elsewhere; before op-set 13 all axes from `axis` on are one."""
    shape, dtype = op.shape(0), op.dtype(0)
    axis = op.attribute("axis", -1 if op.version >= 13 else 1)
    axis = axis % len(shape) if axis < 0 else axis
    x = op.input(0)
    if op.version < 13:
        rows = int(np.prod(shape[:axis]))
        x, axis = op.emit(relax.op.reshape(x, (rows, int(np.prod(shape)) // rows))), 1
    best = position_of_extreme(op, x, axis, True, greatest=True, last=False)
    count = int(x.ty.shape.values[axis])
    places = np.arange(count).reshape([-1 if number == axis else 1 for number in range(len(x.ty.shape.values))])
    hot = cast(op, op.emit(relax.op.equal(best, relax.const(places, "int64"))), dtype)
    return hot if op.version >= 13 else op.emit(relax.op.reshape(hot, shape))


def _zero(_dtype: str) -> int:
    return 0


_SQRT, _LOG = _in_float(relax.op.sqrt), _in_float(relax.op.log)
CONVERTERS: dict[str, Converter] = {
    "ArgMax": _position(greatest=True),
    "ArgMin": _position(greatest=False),
    "Hardmax": _hardmax,
    "ReduceL1": _reduction(_total, _zero, before=_abs),
    "ReduceL2": _reduction(_total, _zero, before=_square, after=_SQRT),
    "ReduceLogSum": _reduction(_total, lowest, after=_LOG),
    "ReduceLogSumExp": _reduction(_log_sum_exp, lowest),
    "ReduceMax": _reduction(_greatest, lowest),
    "ReduceMean": _reduction(_mean, lambda _dtype: np.nan if is_float(_dtype) else 0),
    "ReduceMin": _reduction(_least, highest),
    "ReduceProd": _reduction(_product, lambda _dtype: 1),
    "ReduceSum": _reduction(_total, _zero),
    "ReduceSumSquare": _reduction(_total, _zero, before=_square),
}
