"""Evaluates data movement on constants with NumPy, at once.

TVM's own FoldConstant compiles and runs a naive kernel for each: seconds for a network's weights, and it starts TVM's
thread pool, after which this process can no longer fork workers that run kernels.
Before: any Relax functions. After: no call of an operator in `_NUMPY` whose operands are all constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def _static_shape(call: relax.Call) -> tuple[int, ...]:
    return tuple(int(axis) for axis in call.ty.shape)


def _permute_dims(call: relax.Call, data: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return np.transpose(data, None if axes is None else [int(axis) for axis in axes])


def _reshape(call: relax.Call, data: np.ndarray) -> np.ndarray:
    return data.reshape(_static_shape(call))


def _broadcast_to(call: relax.Call, data: np.ndarray) -> np.ndarray:
    return np.broadcast_to(data, _static_shape(call))


def _astype(call: relax.Call, data: np.ndarray) -> np.ndarray:
    return data.astype(str(call.attrs.dtype))


_NUMPY: dict[str, Callable[[relax.Call, np.ndarray], np.ndarray]] = {
    "relax.permute_dims": _permute_dims,
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.flatten": _reshape,
    "relax.broadcast_to": _broadcast_to,
    "relax.astype": _astype,
}


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = super().visit_call_(op)
        evaluate = _NUMPY.get(getattr(call.op, "name", ""))
        if evaluate is None or not call.args or not isinstance(call.args[0], tvm.ir.GenericConst):
            return call
        data = call.args[0].value
        if str(data.dtype) not in np.sctypeDict:  # bfloat16 and float8: rare, and left to TVM
            return call
        return relax.const(np.ascontiguousarray(evaluate(call, data.numpy())), str(call.ty.dtype))

    def visit_dataflow_var_(self, op: relax.DataflowVar) -> relax.Expr:
        return self._constant_or(super().visit_dataflow_var_(op))

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        return self._constant_or(super().visit_var_(op))

    def _constant_or(self, var: relax.Expr) -> relax.Expr:
        bound = self.lookup_binding(var) if isinstance(var, relax.Var) else None
        return bound if isinstance(bound, tvm.ir.GenericConst) else var


@tvm.transform.module_pass(opt_level=0, name="FoldConstantsWithNumpy")
def fold_constants(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Replace data movement on constants by its result."""
    folder = _Folder(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            folder.builder_.update_func(var, folder.visit_expr(function))
    return relax.transform.DeadCodeElimination()(folder.builder_.get())
