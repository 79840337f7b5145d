"""Batch norms that no convolution has taken in → one multiplication and one addition with constants.

TVM decomposes them into a subtraction, a division, a multiplication and an addition, each with a vector of its own.
Before: any Relax functions. After: no batch norm whose statistics and weights are constants.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = super().visit_call_(op)
        if getattr(call.op, "name", "") != "relax.nn.batch_norm" or bool(call.attrs.training):
            return call
        if not all(isinstance(weight, tvm.ir.GenericConst) for weight in call.args[1:]):
            return call
        data, dtype = call.args[0], str(call.args[0].ty.dtype)
        gamma, beta, mean, variance = (weight.value.numpy().astype("float64") for weight in call.args[1:])
        scale = 1 / np.sqrt(variance + float(call.attrs.epsilon))
        scale = scale * gamma if bool(call.attrs.scale) else scale
        shift = (beta if bool(call.attrs.center) else 0) - mean * scale
        shape = [1] * data.ty.ndim
        shape[int(call.attrs.axis) % data.ty.ndim] = -1
        scaled = self.builder_.emit(relax.op.multiply(data, relax.const(scale.reshape(shape), dtype)))
        shifted = self.builder_.emit(relax.op.add(scaled, relax.const(shift.reshape(shape), dtype)))
        return relax.Tuple([shifted, *call.args[3:]])


@tvm.transform.module_pass(opt_level=0, name="BatchNorms")
def batch_norms(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Scale and shift instead of normalising."""
    folder = _Folder(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            folder.builder_.update_func(var, folder.visit_expr(function))
    return folder.builder_.get()
