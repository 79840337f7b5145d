"""Adds float16 up in float32: sums of float16 lose a digit in some hundred terms, and ONNX Runtime casts first too.

Before: any Relax functions. After: matmul and convolutions of float16 accumulate, and reductions run, in float32; what
they give is cast back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_NARROW, _WIDE = "float16", "float32"
_REDUCTIONS = frozenset(
    {
        *("relax.mean", "relax.sum", "relax.prod", "relax.variance", "relax.std", "relax.cumsum", "relax.cumprod"),
        *("relax.nn.softmax", "relax.nn.log_softmax"),
        *("relax.nn.avg_pool1d", "relax.nn.avg_pool2d", "relax.nn.avg_pool3d", "relax.nn.adaptive_avg_pool2d"),
    }
)


def _convolve(operator: Callable[..., relax.Expr], names: tuple[str, ...]) -> Callable[[relax.Call], relax.Expr]:
    def rebuild(call: relax.Call) -> relax.Expr:
        attributes: dict[str, Any] = {name: _plain(getattr(call.attrs, name)) for name in names}
        return operator(*call.args, **attributes, out_dtype=_WIDE)

    return rebuild


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else [int(axis) for axis in value]


_CONV = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
_TRANSPOSED = ("strides", "padding", "output_padding", *_CONV[2:])
_ACCUMULATING: dict[str, Callable[[relax.Call], relax.Expr]] = {
    "relax.matmul": lambda call: relax.op.matmul(*call.args, out_dtype=_WIDE),
    "relax.nn.conv1d": _convolve(relax.op.nn.conv1d, _CONV),
    "relax.nn.conv2d": _convolve(relax.op.nn.conv2d, _CONV),
    "relax.nn.conv3d": _convolve(relax.op.nn.conv3d, _CONV),
    "relax.nn.conv1d_transpose": _convolve(relax.op.nn.conv1d_transpose, _TRANSPOSED),
    "relax.nn.conv2d_transpose": _convolve(relax.op.nn.conv2d_transpose, _TRANSPOSED),
    "relax.nn.conv3d_transpose": _convolve(relax.op.nn.conv3d_transpose, _TRANSPOSED),
}


@mutator
class _Widener(PyExprMutator):
    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = super().visit_call_(op)
        name = getattr(op.op, "name", "")
        if not isinstance(op.ty, relax.TensorType) or str(op.ty.dtype) != _NARROW:
            return call
        if name in _ACCUMULATING:
            return relax.op.astype(self.builder_.emit(_ACCUMULATING[name](call)), _NARROW)
        if name in _REDUCTIONS:
            wide = self.builder_.emit(relax.op.astype(call.args[0], _WIDE))
            reduced = relax.Call(call.op, [wide, *call.args[1:]], call.attrs, call.ty_args)
            return relax.op.astype(self.builder_.emit(reduced), _NARROW)
        return call


@tvm.transform.module_pass(opt_level=0, name="WideSums")
def wide_sums(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Give every sum of float16 an accumulator of float32."""
    widener = _Widener(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            widener.builder_.update_func(var, widener.visit_expr(function))
    return widener.builder_.get()
