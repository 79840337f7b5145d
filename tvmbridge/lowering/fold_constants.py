"""Evaluates what has only constant operands with NumPy, at once.

TVM's own FoldConstant compiles and runs a naive kernel for each: seconds for a network's weights, and it starts TVM's
thread pool, after which this process can no longer fork workers that run kernels.
Before: any Relax functions. After: no call of an operator in `_NUMPY` whose operands are all constants, except where
the result is far larger than they are: a broadcast that is computed costs less than one that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_GROWTH = 2  # how many times larger than its operands a result may be …
_CAST_GROWTH = 8  # … of a cast, mostly of a quantised weight, which a template packs only as a constant …
_SMALL_BYTES = 1 << 16  # … unless it is smaller than this


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


def _concat(call: relax.Call, *data: np.ndarray) -> np.ndarray:
    return np.concatenate(data, None if call.attrs.axis is None else int(call.attrs.axis))


def _filled(number: int) -> Callable[[relax.Call], np.ndarray]:
    return lambda call: np.full(_static_shape(call), number, str(call.ty.dtype))


def _plain(operator: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda _call, *data: operator(*data)


def _of_floats(operator: Callable[..., np.ndarray]) -> Callable[..., np.ndarray | None]:
    """Operators whose rounding, of integers, NumPy and TVM may see differently."""
    return lambda _call, *data: operator(*data) if all(array.dtype.kind == "f" for array in data) else None


_NUMPY: dict[str, Callable[..., np.ndarray | None]] = {
    "relax.permute_dims": _permute_dims,
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.flatten": _reshape,
    "relax.broadcast_to": _broadcast_to,
    "relax.astype": _astype,
    "relax.concat": _concat,
    "relax.zeros": _filled(0),
    "relax.ones": _filled(1),
    "relax.zeros_like": _plain(np.zeros_like),
    "relax.ones_like": _plain(np.ones_like),
    "relax.add": _plain(np.add),
    "relax.subtract": _plain(np.subtract),
    "relax.multiply": _plain(np.multiply),
    "relax.maximum": _plain(np.maximum),
    "relax.minimum": _plain(np.minimum),
    "relax.negative": _plain(np.negative),
    "relax.abs": _plain(np.abs),
    "relax.where": _plain(np.where),
    "relax.divide": _of_floats(np.divide),
    "relax.power": _of_floats(np.power),
    "relax.sqrt": _of_floats(np.sqrt),
    "relax.rsqrt": _of_floats(lambda data: (1 / np.sqrt(data)).astype(data.dtype)),
    "relax.exp": _of_floats(np.exp),
    "relax.log": _of_floats(np.log),
}


@mutator
class _Folder(PyExprMutator):
    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = super().visit_call_(op)
        evaluate = _NUMPY.get(getattr(call.op, "name", ""))
        operands = _tensors(call)
        if evaluate is None or operands is None or not _is_worth_it(call, operands):
            return call
        with np.errstate(all="ignore"):  # as at run time, where nobody is told either
            data = evaluate(call, *operands)
        return call if data is None else relax.const(np.ascontiguousarray(data), str(call.ty.dtype))

    def visit_dataflow_var_(self, op: relax.DataflowVar) -> relax.Expr:
        return self._constant_or(super().visit_dataflow_var_(op))

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        return self._constant_or(super().visit_var_(op))

    def _constant_or(self, var: relax.Expr) -> relax.Expr:
        bound = self.lookup_binding(var) if isinstance(var, relax.Var) else None
        return bound if isinstance(bound, tvm.ir.GenericConst) else var


def _tensors(call: relax.Call) -> list[np.ndarray] | None:
    """The values of the tensors that a call reads; None where one is no constant, or of a dtype NumPy has not."""
    arguments = call.args[0].fields if call.args and isinstance(call.args[0], relax.Tuple) else call.args
    operands = []
    for argument in arguments:
        if isinstance(argument, tvm.ir.GenericConst) and str(argument.value.dtype) in np.sctypeDict:
            operands.append(argument.value.numpy())
        elif not isinstance(argument.ty, relax.ShapeType):
            return None
    return operands


def _is_worth_it(call: relax.Call, operands: list[np.ndarray]) -> bool:
    shape = call.ty.shape if isinstance(call.ty, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(axis, tvm.tirx.IntImm) for axis in shape.values):
        return False
    if str(call.ty.dtype) not in np.sctypeDict:
        return False
    size = np.dtype(str(call.ty.dtype)).itemsize * int(np.prod(_static_shape(call)))
    growth = _CAST_GROWTH if call.op.name == "relax.astype" else _GROWTH
    return size <= max(_SMALL_BYTES, growth * sum(array.nbytes for array in operands))


@tvm.transform.module_pass(opt_level=0, name="FoldConstantsWithNumpy")
def fold_constants(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Replace what is computed of constants by its result."""
    folder = _Folder(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            folder.builder_.update_func(var, folder.visit_expr(function))
    return relax.transform.DeadCodeElimination()(folder.builder_.get())
