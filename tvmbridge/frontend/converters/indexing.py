"""Operators that take elements by index, and put them: gathers and scatters.

Negative indices count from the end; what then is out of range is clipped, of gathers when the module is lowered, so
that nothing is read or written outside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from tvmbridge.frontend.operator import Converter, Operator


def _from_the_front(op: Operator, extents: int | np.ndarray) -> relax.Expr:
    """Operand 1, its negative indices counted from the front. The extents are known here; TVM would compute them."""
    known, dtype = op.constant(1), op.dtype(1)
    if known is not None:
        return relax.const(np.where(known < 0, known + extents, known).astype(dtype), dtype)
    indices = op.input(1)
    negative = op.emit(relax.op.less(indices, relax.const(0, dtype)))
    wrapped = op.emit(relax.op.add(indices, relax.const(np.asarray(extents, dtype), dtype)))
    return op.emit(relax.op.where(negative, wrapped, indices))


def _gather(op: Operator) -> relax.Expr:
    axis = op.attribute("axis", 0)
    return relax.op.take(op.input(0), _from_the_front(op, op.shape(0)[axis]), axis, mode="fast")


def _gather_elements(op: Operator) -> relax.Expr:
    axis = op.attribute("axis", 0)
    return relax.op.gather_elements(op.input(0), _from_the_front(op, op.shape(0)[axis]), axis)


def _gather_nd(op: Operator) -> relax.Expr:
    batches = op.attribute("batch_dims", 0)
    extents = np.array(op.shape(0)[batches : batches + op.shape(1)[-1]])
    return relax.op.gather_nd(op.input(0), _from_the_front(op, extents), batches)


_Combine = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
_COMBINE: dict[str, _Combine] = {
    "none": lambda _, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": lambda old, new: tirx.Select(new < old, new, old),
    "max": lambda old, new: tirx.Select(old < new, new, old),
}
_COMBINE_BOOL: dict[str, _Combine] = {
    "none": lambda _, new: new,
    **dict.fromkeys(("add", "max"), tirx.Or),
    **dict.fromkeys(("mul", "min"), tirx.And),
}
_Place = Callable[[Any, tuple[tirx.Var, ...]], list[tirx.Expr]]


def _within(index: tirx.Expr, extent: int) -> tirx.Expr:
    """An index counted from the front, in range."""
    index = index.astype("int64")
    return tirx.min(tirx.max(tirx.Select(index < 0, index + extent, index), 0), extent - 1)


def _scattered(data: te.Tensor, indices: te.Tensor, updates: te.Tensor, place: _Place, reduction: str) -> te.Tensor:
    """The data with the updates combined into it one after the other: an index may occur many times."""
    combine = (_COMBINE_BOOL if data.dtype == "bool" else _COMBINE)[reduction]

    def write(inputs: list[Any], made: Any) -> Any:
        given, where, new = inputs
        with IRBuilder() as builder, script.serial(0, 1):  # a builder gives one statement
            with ExitStack() as loops:
                at = [loops.enter_context(script.serial(0, extent)) for extent in data.shape]
                script.buffer_store(made, given[tuple(at)], at)
            with ExitStack() as loops:
                at = [loops.enter_context(script.serial(0, extent)) for extent in updates.shape]
                target = place(where, tuple(at))
                script.buffer_store(made, combine(made[tuple(target)], new[tuple(at)]), target)
        return builder.get()

    buffer = tirx.decl_buffer(data.shape, data.dtype, "scattered", layout=None)
    operands = [data, indices, updates]
    return te.extern(
        [data.shape],
        operands,
        lambda inputs, outputs: write(inputs, outputs[0]),
        dtype=data.dtype,
        out_buffers=[buffer],
        name="scatter",
    )


def _scatter(op: Operator, place: _Place) -> relax.Expr:
    if 0 in op.shape(2):
        return op.input(0)
    scattered = functools.partial(_scattered, place=place, reduction=op.attribute("reduction", "none"))
    return op.compute(scattered, *op.inputs, name="scatter")


def _scatter_elements(op: Operator) -> relax.Expr:
    shape, axis = op.shape(0), op.attribute("axis", 0) % max(len(op.shape(0)), 1)

    def place(indices: Any, at: tuple[tirx.Var, ...]) -> list[tirx.Expr]:
        return [_within(indices[at], shape[axis]) if k == axis else index for k, index in enumerate(at)]

    return _scatter(op, place)


def _scatter_nd(op: Operator) -> relax.Expr:
    shape, (*batch, depth) = op.shape(0), op.shape(1)

    def place(indices: Any, at: tuple[tirx.Var, ...]) -> list[tirx.Expr]:
        rows, rest = list(at[: len(batch)]), at[len(batch) :]
        return [*(_within(indices[tuple([*rows, k])], shape[k]) for k in range(depth)), *rest]

    return _scatter(op, place)


CONVERTERS: dict[str, Converter] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
