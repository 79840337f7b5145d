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
    main = module["main"]
    inputs = len(main.params)
    lifted = lifter.visit_expr(main)
    main = relax.Function([*lifted.params, *lifter.parameters], lifted.body, lifted.ret_ty, lifted.is_pure, main.attrs)
    module = lifter.builder_.get()
    module.update_func(module.get_global_var("main"), main.with_attr("num_input", inputs))
    module = relax.transform.DeadCodeElimination()(module)
    if lifter.arrays:
        module = relax.transform.BundleModelParams("weights")(module)
    return module, tuple(lifter.arrays)


@mutator
class _WeightLifter(PyExprMutator):
    """Replaces each constant by a parameter; one that is used twice in the same order becomes one parameter."""

    def __init__(self, module: tvm.IRModule, packed: dict[str, KernelPlan]) -> None:
        super().__init__(module)
        self.arrays: list[np.ndarray] = []
        self.parameters: list[relax.Var] = []
        self._packed = packed
        self._lifted: dict[tuple[tvm.ir.GenericConst, Packing | None], relax.Var] = {}

    def visit_call_(self, op: relax.Call) -> relax.Expr:
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
            array = packing.pack(array) if packing else array
            self._lifted[known] = relax.Var(
                f"weight{len(self.arrays)}", relax.TensorType(array.shape, str(constant.value.dtype))
            )
            self.arrays.append(array)
            self.parameters.append(self._lifted[known])
        return self._lifted[known]
