"""Takes the buffers that TVM's memory planner puts into a branch out of it: it uses them in the other one and after."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@mutator
class _Hoister(PyExprMutator):
    """Empties branches of their allocations, which `hoisted` keeps."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.hoisted: list[relax.VarBinding] = []
        self._depth = 0

    def visit_if_(self, op: relax.If) -> relax.Expr:
        self._depth += 1
        try:
            return super().visit_if_(op)
        finally:
            self._depth -= 1

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if self._depth and _allocates(binding.value):
            self.hoisted.append(binding)
        else:
            super().visit_var_binding_(binding)


def _allocates(expr: relax.Expr) -> bool:
    return isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.memory.alloc_storage"


@tvm.transform.module_pass(opt_level=0, name="branch_storage")
def branch_storage(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Before: planned memory. After: no branch allocates a planned buffer; the function does, before anything else.

    A branch that is not taken leaves its buffers unused for that call; without this, what uses them reads nowhere.
    """
    for variable, function in module.functions_items():
        if not isinstance(function, relax.Function):
            continue
        hoister = _Hoister(module)
        body = hoister.visit_expr(function.body)
        if hoister.hoisted:
            body = relax.SeqExpr([relax.BindingBlock(hoister.hoisted), *body.blocks], body.body)
            changed = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
            module.update_func(variable, changed)
    return module
