"""Takes out of a row's loops what is the same everywhere in the row: a mean, the reciprocal of a deviation."""

from __future__ import annotations

import dataclasses

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.expressions import is_choice, loads, variables
from tvmbridge.schedules.reading.row_steps import Step


def without_invariants(step: Step) -> list[Step]:
    """The step behind steps of their own for what is the same everywhere in a row, and takes more than a load."""
    if not step.axes:
        return [step]
    inner = {axis.var for axis in step.axes}
    found: list[tvm.ir.Expr] = []

    def visit(node: tvm.ir.Expr) -> tvm_ffi.WalkResult | None:
        if isinstance(node, (tvm.ir.TensorLoad, tvm.ir.Var)):
            return tvm_ffi.WalkResult.SKIP
        if isinstance(node, _ARITHMETIC) and operations(node) > 1 and _is_invariant(node, inner):
            found.append(node)
            return tvm_ffi.WalkResult.SKIP
        # What a condition guards may not be computed where the condition does not hold.
        return tvm_ffi.WalkResult.SKIP if is_choice(node) else None

    tvm_ffi.structural_walk(step.value, (tvm.ir.Expr, visit), order="pre")
    steps, buffers = [], []
    for place, value in enumerate(found):
        buffer = tirx.decl_buffer([], str(value.ty.dtype), f"invariant{place}")
        buffers.append(buffer)
        steps.append(Step((), (), buffer, (), True, None, None, value))

    def replaced(node: tvm.ir.Expr) -> tvm.ir.Expr:
        place = next((i for i, value in enumerate(found) if value.same_as(node)), None)
        return node if place is None else tirx.BufferLoad(buffers[place], [])

    value = tvm_ffi.structural_map(step.value, (tvm.ir.Expr, replaced), order="pre")
    return [*steps, dataclasses.replace(step, value=value)]


_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Cast, tirx.Let, tvm.ir.Call)


def _is_invariant(expr: tvm.ir.Expr, inner: set[tvm.ir.Var]) -> bool:
    """Whether the expression is the same for all inner axes and of more than constants; let bindings are its own."""
    bound: set[tvm.ir.Var] = set()
    tvm_ffi.structural_walk(expr, (tirx.Let, lambda let: bound.add(let.var)))
    loaded = {load.source for load in loads(expr)}
    used = set(variables(expr)) - bound - loaded
    return bool(loaded) and not inner & used and all(str(var.ty.dtype) == "int64" for var in used)
