"""Walks over expressions: what they load, which variables they use, what they choose, with any of it replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

Values = dict[tvm.ir.Var, tvm.ir.Expr]


def number(value: int) -> tirx.IntImm:
    """An index constant; TVM narrows 64-bit indices where a buffer is small enough."""
    return tirx.IntImm("int64", value)


def constant(expr: tvm.ir.Expr | None) -> int | float | None:
    """The number that the expression is; None where it is more than a number."""
    return expr.value if isinstance(expr, tirx.IntImm | tirx.FloatImm) else None


def is_float(expr: tvm.ir.Expr) -> bool:
    """Whether it is a floating point value."""
    return isinstance(expr.ty, tvm.ir.PrimType) and str(expr.ty.dtype).startswith(("float", "bfloat"))


def name_of(call: tvm.ir.Call) -> str:
    """What is called, such as exp."""
    return str(getattr(call.op, "name", "")).rpartition(".")[2]


def is_choice(expr: tvm.ir.Expr) -> bool:
    """Whether it is an if_then_else, of which only the chosen side may be computed."""
    return isinstance(expr, tvm.ir.Call) and name_of(expr) == "if_then_else"


def chooses(expr: tvm.ir.Expr) -> bool:
    """Whether there is an if_then_else in the expression."""
    found: list[bool] = []
    tvm_ffi.structural_walk(expr, (tvm.ir.Call, lambda call: found.append(is_choice(call))))
    return any(found)


def variables(expr: tvm.ir.Expr) -> list[tvm.ir.Var]:
    """Every variable in the expression, buffers that it loads from included."""
    found: dict[tvm.ir.Var, None] = {}
    tvm_ffi.structural_walk(expr, (tvm.ir.Var, lambda var: found.update({var: None})))
    return list(found)


def loads(expr: tvm.ir.Expr) -> list[tvm.ir.TensorLoad]:
    """Every load in the expression."""
    found: list[tvm.ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (tvm.ir.TensorLoad, lambda load: found.append(load)))
    return found


def loads_of(expr: tvm.ir.Expr, buffer: tvm.ir.Var) -> list[tvm.ir.TensorLoad]:
    """Every load from one buffer."""
    return [load for load in loads(expr) if load.source.same_as(buffer)]


def substitute(expr: tvm.ir.Expr, values: Mapping[tvm.ir.Var, tvm.ir.Expr]) -> tvm.ir.Expr:
    """The expression with variables replaced."""
    return tvm_ffi.structural_map(expr, (tvm.ir.Var, lambda var: values.get(var, var)))


def replace_loads(
    expr: tvm.ir.Expr, buffer: tvm.ir.Var, value: Callable[[Sequence[tvm.ir.Expr]], tvm.ir.Expr]
) -> tvm.ir.Expr:
    """The expression with each load of `buffer` replaced by `value(indices)`."""
    return tvm_ffi.structural_map(
        expr, (tvm.ir.TensorLoad, lambda load: value(load.indices) if load.source.same_as(buffer) else load)
    )


def reload(expr: tvm.ir.Expr, buffer: tvm.ir.Var, indices: Sequence[tvm.ir.Expr]) -> tvm.ir.Expr:
    """An expression of one load with that load reading another place."""
    return tvm_ffi.structural_map(expr, (tvm.ir.TensorLoad, lambda _: tirx.BufferLoad(buffer, list(indices))))
