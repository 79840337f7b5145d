"""Cuts element-wise chains that would grow too long when they are fused.

A fused value is written into every place that reads it: of a chain in which each step reads the last one twice, n steps
become 2^n terms, and a compiler that takes hours. Choices within conditions of choices take TVM about as long.
Before: kernels with annotated patterns. After: a kernel whose value would have more than `_TERMS` terms, or be such a
choice, fuses with nothing, so that what reads it starts from a tensor again.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_TERMS = 300
_INJECTIVE, _OPAQUE = 2, 8  # of tvm::relax::OpPatternKind
_PATTERN = "op_pattern"


@mutator
class _Cutter(PyExprMutator):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._module = module
        self._terms: dict[relax.Expr, int] = {}
        self._choosing: set[relax.Expr] = set()  # whose values have a choice in them

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.call_tir":
            if isinstance(value, relax.Var):
                self._terms[binding.var] = self._terms.get(value, 1)
                self._choosing |= {binding.var} if value in self._choosing else set()
            super().visit_var_binding_(binding)
            return
        function = self._module[value.args[0]]
        if int(function.attrs[_PATTERN]) <= _INJECTIVE:
            operands = value.args[1].fields
            chooses = value.args[0].name_hint.startswith("where")
            terms = 1 + sum(self._terms.get(operand, 1) for operand in operands)
            if terms <= _TERMS and not (chooses and operands[0] in self._choosing):
                self._terms[binding.var] = terms
                if chooses or any(operand in self._choosing for operand in operands):
                    self._choosing.add(binding.var)
            else:
                alone = self.builder_.add_func(function.with_attr(_PATTERN, _OPAQUE), value.args[0].name_hint)
                cut = relax.Call(value.op, [alone, *value.args[1:]], value.attrs, value.ty_args)
                binding = relax.VarBinding(binding.var, cut)
        super().visit_var_binding_(binding)


@tvm.transform.module_pass(opt_level=0, name="BoundedFusion")
def bounded_fusion(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Keep from fusing what would make a fused kernel explode."""
    cutter = _Cutter(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            cutter.builder_.update_func(var, cutter.visit_expr(function))
    return cutter.builder_.get()
