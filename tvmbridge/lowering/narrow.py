"""Computes only that part of a tensor which is read: a classifier of one token needs no layer of the other tokens.

Where all readers of a tensor want the same slice of it, the slice is taken from what it is computed of instead, back
through element-wise operators, norms and the rows of matrix products. Before: any Relax functions. After: of these
operators' results, no dataflow block computes elements that are sliced away.
"""

from __future__ import annotations

import dataclasses

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmbridge.lowering.layout_rules import ELEMENTWISE
from tvmbridge.lowering.layouts import static_shape


@dataclasses.dataclass(frozen=True)
class _Part:
    """A contiguous part of a tensor along one axis."""

    axis: int
    start: int
    stop: int


def _name(value: relax.Expr) -> str:
    return getattr(value.op, "name", "") if isinstance(value, relax.Call) else ""


def _sliced(call: relax.Expr) -> _Part | None:
    """The part that a slice takes; None for what is no slice, or one that a _Part cannot say."""
    shape = static_shape(call.args[0]) if _name(call) in ("relax.strided_slice", "relax.take") else None
    if shape is None:
        return None
    if _name(call) == "relax.take":
        index, axis = call.args[1], call.attrs.axis
        if axis is None or not isinstance(index, tvm.ir.GenericConst) or index.ty.ndim != 0:
            return None
        axis, start = int(axis) % len(shape), int(index.value.numpy())
        return _Part(axis, start, start + 1) if 0 <= start < shape[axis] else None
    numbers = [
        [int(entry) for entry in argument.fields] for argument in call.args[1:] if _is_tuple_of_numbers(argument)
    ]
    if len(numbers) != len(call.args) - 1 or len(numbers) < 3 or any(len(entry) != 1 for entry in numbers):
        return None
    axis, (start,), (stop,) = numbers[0][0] % len(shape), *numbers[1:3]
    steps = numbers[3][0] if len(numbers) > 3 else 1
    return _Part(axis, start, stop) if steps == 1 and 0 <= start < stop <= shape[axis] else None


def _is_tuple_of_numbers(expr: relax.Expr) -> bool:
    return isinstance(expr, relax.Tuple) and all(isinstance(field, tvm.tirx.IntImm) for field in expr.fields)


def _needed(call: relax.Expr, part: _Part) -> list[_Part | None] | None:
    """What of each operand a part of the result needs, None being all of it; None where the operator cannot tell."""
    name, made = _name(call), static_shape(call) if isinstance(call, relax.Call) else None
    if made is None:
        return None
    if name in ELEMENTWISE:
        return [_broadcast_part(argument, len(made), part) for argument in call.args]
    if name in ("relax.nn.layer_norm", "relax.nn.rms_norm"):
        axes = [int(axis) % len(made) for axis in call.attrs.axes]
        return None if part.axis in axes else [part, *[None] * (len(call.args) - 1)]
    if name in ("relax.nn.softmax", "relax.nn.log_softmax"):
        return None if part.axis == int(call.attrs.axis) % len(made) else [part]
    if name == "relax.matmul" and call.args[0].ty.ndim == len(made) and part.axis == len(made) - 2:
        return [part, None]
    return None


def _broadcast_part(operand: relax.Expr, rank: int, part: _Part) -> _Part | None:
    shape = static_shape(operand)
    axis = part.axis - (rank - len(shape)) if shape is not None else -1
    return dataclasses.replace(part, axis=axis) if shape is not None and axis >= 0 and shape[axis] != 1 else None


def _plan(block: relax.DataflowBlock) -> dict[relax.Var, _Part]:
    """The variables of which all readers want the same part, and that can be computed in part."""
    wanted: dict[relax.Var, set[_Part | None]] = {}
    plan: dict[relax.Var, _Part] = {}
    for binding in reversed(block.bindings):
        value, parts = binding.value, wanted.get(binding.var, {None})
        whole = not isinstance(binding.var, relax.DataflowVar) or len(parts) != 1
        part = None if whole else next(iter(parts))
        needed = _needed(value, part) if part is not None else None
        taken = _sliced(value)
        if needed is not None and part is not None:
            plan[binding.var] = part
            for argument, need in zip(value.args, needed, strict=True):
                wanted.setdefault(argument, set()).add(need)
        elif taken is not None:
            wanted.setdefault(value.args[0], set()).add(taken)
        else:
            for var in relax.analysis.free_vars(value):
                wanted.setdefault(var, set()).add(None)
    return plan


@mutator
class _Narrower(PyExprMutator):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._plan: dict[relax.Var, _Part] = {}

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        self._plan = _plan(block)
        return super().visit_dataflow_block_(block)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value, part = binding.value, self._plan.get(binding.var)
        needed = _needed(value, part) if part is not None else None
        if needed is not None:
            operands = [self._take(argument, need) for argument, need in zip(value.args, needed, strict=True)]
            self._bind(binding.var, relax.Call(value.op, operands, value.attrs, value.ty_args))
            return
        taken = _sliced(value)
        if taken is None or self._plan.get(value.args[0]) != taken:
            super().visit_var_binding_(binding)
            return
        narrow = self.visit_expr(value.args[0])
        self._bind(binding.var, relax.op.squeeze(narrow, [taken.axis]) if _name(value) == "relax.take" else narrow)

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        emit = self.builder_.emit if isinstance(var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(var, emit(value))

    def _take(self, operand: relax.Expr, part: _Part | None) -> relax.Expr:
        visited = self.visit_expr(operand)
        if part is None or self._plan.get(operand) == part:
            return visited
        return self.builder_.emit(relax.op.strided_slice(visited, [part.axis], [part.start], [part.stop]))


@tvm.transform.module_pass(opt_level=0, name="Narrow")
def narrow(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Compute of each tensor what is read of it."""
    narrower = _Narrower(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            narrower.builder_.update_func(var, narrower.visit_expr(function))
    return narrower.builder_.get()
