"""Lays convolutions and whatever lies between them out channels-last, and merges and drops transposes and reshapes.

Convolutions demand channels last. Their results are carried on in that order through every operator that has a rule in
layout_rules.py; the model's own transposes and reshapes only change how a tensor is read. Elements move where an
operator without a rule, or the model's output, wants a tensor as the model has it. TVM's ConvertLayout knows fewer
operators, fails on some that no convolution is near, and leaves a transpose on each side of those it does not know.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmbridge.lowering.layout_rules import RULES
from tvmbridge.lowering.layouts import Laid, Layouts, natural, static_shape


@mutator
class _Propagator(PyExprMutator):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.layouts = Layouts(self.builder_)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        found = self._lay_out(binding.value)
        if found is None:
            super().visit_var_binding_(binding)
        elif isinstance(found, Laid) and not self._may_stay(binding.var):
            output = self.builder_.emit_output(self.layouts.natural(found))
            self.set_var_remap(binding.var, output)
        else:
            self.layouts.record(binding.var, found)

    def visit_if_(self, op: relax.If) -> relax.Expr:
        condition = self.visit_expr(op.cond)
        branches = []
        for branch in (op.true_branch, op.false_branch):
            before = self.layouts.count_moves()
            branches.append(self.visit_with_new_scope(branch))
            self.layouts.forget_moves_since(before)
        return relax.If(condition, *branches)

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        stored = self._stored_naturally(op)
        return super().visit_var_(op) if stored is None else stored

    def visit_dataflow_var_(self, op: relax.DataflowVar) -> relax.Expr:
        stored = self._stored_naturally(op)
        return super().visit_dataflow_var_(op) if stored is None else stored

    def _stored_naturally(self, var: relax.Var) -> relax.Expr | None:
        found = self.layouts.find(var)
        if isinstance(found, tuple):
            return relax.Tuple([self.layouts.natural(part) for part in found])
        return None if found is None else self.layouts.natural(found)

    def _may_stay(self, var: relax.Var) -> bool:
        """What leaves a dataflow block does so as the model has it: what is emitted there is seen only there."""
        return isinstance(var, relax.DataflowVar) or not self.builder_.current_block_is_dataflow()

    def _lay_out(self, value: relax.Expr) -> Laid | tuple[Laid, ...] | None:
        if isinstance(value, relax.TupleGetItem):
            parts = self.layouts.find(value.tuple_value)
            return parts[value.index] if isinstance(parts, tuple) else None
        if isinstance(value, relax.Var):
            return self.layouts.find(value)
        rule = RULES.get(getattr(value.op, "name", "")) if isinstance(value, relax.Call) else None
        if rule is None:
            return None
        operands = self._operands(value)
        if operands is None or _shapes_unknown(value):
            return None
        return rule(self.layouts, value, operands)

    def _operands(self, call: relax.Call) -> list[Laid] | None:
        """The tensors that a call reads; None where one's extents are known at run time only."""
        operands = []
        for argument in call.args[0].fields if isinstance(call.args[0], relax.Tuple) else call.args:
            if not isinstance(argument.ty, relax.TensorType):
                continue
            laid = self.layouts.find(argument)
            if not isinstance(laid, Laid):
                stored = self.visit_expr(argument)
                shape = static_shape(stored)
                if shape is None:
                    return None
                laid = Laid(stored, natural(len(shape)), shape)
            operands.append(laid)
        return operands


def _shapes_unknown(call: relax.Call) -> bool:
    fields = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
    return any(static_shape(relax.Var("", field)) is None for field in fields)


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
def channels_last(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Before: convolutions of any layout. After: channels-last ones, of two or three dimensions, and few transposes."""
    propagator = _Propagator(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            propagator.builder_.update_func(var, propagator.visit_expr(function))
    return propagator.builder_.get()
