"""Scheduled kernels and packed weights → one module whose main takes its weights as a tuple behind the inputs.

Weights outside the library can be mapped from the bundle and shared by processes; inside it they would be copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmbridge.codegen.plan import KernelPlan
from tvmbridge.lowering import LoweredModel
from tvmbridge.schedules import Packing


def assemble(lowered: LoweredModel, plans: Sequence[KernelPlan]) -> tuple[tvm.IRModule, tuple[np.ndarray, ...]]:
    """Put the schedules into the module and take the weights out of it, each packed as its kernel wants it.

    Returns the module, whose `main(*inputs, weights)` takes all weights as one tuple (no such parameter where there
    are none), and the weights in the order of that tuple.
    """
    module = tvm.IRModule(dict(lowered.module.functions_items()), attrs=lowered.module.attrs)
    packed = {}
    for plan in plans:
        if plan.scheduled.packings:
            packed[plan.kernel.name] = plan
        else:
            module.update_func(module.get_global_var(plan.kernel.name), plan.scheduled.function)
    lifter = _WeightLifter(module, packed)
    for variable in _callees_first(module):
        lifter.lift(variable)
    module = lifter.builder_.get()
    module = relax.transform.DeadCodeElimination()(module)
    if lifter.arrays:
        module = relax.transform.BundleModelParams("weights")(module)
    return module, tuple(lifter.arrays)


def _callees_first(module: tvm.IRModule) -> list[tvm.ir.GlobalVar]:
    """main and the Relax functions that it reaches, each behind those that it calls."""
    found: dict[tvm.ir.GlobalVar, None] = {}

    def reach(variable: tvm.ir.GlobalVar) -> None:
        called: list[tvm.ir.GlobalVar] = []
        relax.analysis.post_order_visit(
            module[variable], lambda expr: called.append(expr) if isinstance(expr, tvm.ir.GlobalVar) else None
        )
        for each in called:
            if each not in found and isinstance(module[each], relax.Function):
                reach(each)
        found[variable] = None

    reach(module.get_global_var("main"))
    return list(found)


@mutator
class _WeightLifter(PyExprMutator):
    """Replaces each constant by a parameter; one that is used twice in the same order becomes one parameter.

    A function below main takes behind its own parameters those weights that it or what it calls reads.
    """

    def __init__(self, module: tvm.IRModule, packed: dict[str, KernelPlan]) -> None:
        super().__init__(module)
        self.arrays: list[np.ndarray] = []
        self._packed = packed
        self._lifted: dict[tuple[tvm.ir.GenericConst, Packing | None], int] = {}
        self._parameters: dict[int, relax.Var] = {}  # of the function at hand, by the weight's place in `arrays`
        self._moved: dict[tvm.ir.GlobalVar, tuple[tvm.ir.GlobalVar, list[int]]] = {}

    def lift(self, variable: tvm.ir.GlobalVar) -> None:
        """Rewrite a function whose callees are rewritten already."""
        function = self.builder_.get()[variable]
        self._parameters = {}
        lifted = self.visit_expr(function)
        read = sorted(self._parameters)
        params = [*lifted.params, *(self._parameters[place] for place in read)]
        made = relax.Function(params, lifted.body, lifted.ret_ty, lifted.is_pure, function.attrs)
        if variable.name_hint == "main":
            self.builder_.update_func(variable, made.with_attr("num_input", len(function.params)))
        elif read:
            self._moved[variable] = self.builder_.add_func(made, variable.name_hint), read
        else:
            self.builder_.update_func(variable, made)

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        if op.op in self._moved:
            function, places = self._moved[op.op]
            operands = [*(self.visit_expr(operand) for operand in op.args), *map(self._parameter, places)]
            return relax.Call(function, operands, op.attrs, op.ty_args)
        is_kernel = getattr(op.op, "name", "") == "relax.call_tir"
        plan = self._packed.get(op.args[0].name_hint) if is_kernel else None
        if plan is None:
            return super().visit_call_(op)
        packings = {packing.parameter: packing for packing in plan.scheduled.packings}
        operands = [
            self._lift(operand, packings[index]) if index in packings else self.visit_expr(operand)
            for index, operand in enumerate(op.args[1].fields)
        ]
        function = self.builder_.add_func(plan.scheduled.function, plan.symbol)
        return relax.Call(op.op, [function, relax.Tuple(operands), *op.args[2:]], op.attrs, op.ty_args)

    def visit_generic_const_(self, op: tvm.ir.GenericConst) -> relax.Expr:
        return self._lift(op, None)

    def _lift(self, constant: tvm.ir.GenericConst, packing: Packing | None) -> relax.Var:
        known = (constant, packing)
        if known not in self._lifted:
            array = constant.value.numpy()
            self._lifted[known] = len(self.arrays)
            self.arrays.append(packing.pack(array) if packing else array)
        return self._parameter(self._lifted[known])

    def _parameter(self, place: int) -> relax.Var:
        """The function's parameter for a weight."""
        if place not in self._parameters:
            array = self.arrays[place]
            self._parameters[place] = relax.Var(f"weight{place}", relax.TensorType(array.shape, array.dtype.name))
        return self._parameters[place]
