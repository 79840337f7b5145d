"""Operators → TIR: TVM's LegalizeOps, with definitions of our own where TVM's lose a NaN or digits, or fail.

TVM's max(x, c) is c for a NaN in x; ONNX Runtime hands the NaN on in Relu, Clip, Max and Min. LLVM's code for max(a, b)
is "a > b, then a, else b", one vector instruction, which gives a NaN in b: so what may be NaN comes second. CUDA's fmax
prefers the number wherever it stands: there it is a choice. Each value is read as rarely as can be, since what is
fused is written into every place that reads it, and choices within choices take exponential time to simplify.
A reshape is seldom a kernel: the virtual machine gives its operand another shape, at no cost.
Before: any Relax functions. After: kernels and reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax, te, topi
from tvm.relax.transform.legalize_ops.common import LegalizeFunc

from tvmbridge.lowering.extremes import legalize_extreme


def _at_least(x: tvm.tirx.PrimExpr, bound: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
    """The greater of both; x where it is NaN."""
    return tvm.tirx.Select(bound > x, bound, x) if _is_cuda() else tvm.tirx.Max(bound, x)


def _at_most(x: tvm.tirx.PrimExpr, bound: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
    return tvm.tirx.Select(bound < x, bound, x) if _is_cuda() else tvm.tirx.Min(bound, x)


def _is_cuda() -> bool:
    target = tvm.target.Target.current(allow_none=True)
    return target is not None and str(target.kind) == "cuda"


def _elementwise(x: te.Tensor, name: str, change: Callable[[tvm.tirx.PrimExpr], tvm.tirx.PrimExpr]) -> te.Tensor:
    return te.compute(x.shape, lambda *i: change(x(*i)), name=name, tag=topi.tag.ELEMWISE)


def _relu(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    def relu(x: te.Tensor) -> te.Tensor:
        return _elementwise(x, "relu", lambda value: _at_least(value, tvm.tirx.const(0, value.ty)))

    return bb.call_te(relu, call.args[0], primfunc_name_hint="relu")


def _leaky_relu(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    alpha = float(call.attrs.alpha)

    def change(value: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
        zero = tvm.tirx.const(0, value.ty)
        return _at_least(value, zero) + _at_most(value, zero) * tvm.tirx.const(alpha, value.ty)

    def leaky_relu(x: te.Tensor) -> te.Tensor:
        return _elementwise(x, "leaky_relu", change)

    return bb.call_te(leaky_relu, call.args[0], primfunc_name_hint="leaky_relu")


def _clip(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    low, high = (bound.value for bound in call.args[1:])

    def change(value: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
        if low != -np.inf:
            value = _at_least(value, tvm.tirx.const(low, value.ty))
        return value if high == np.inf else _at_most(value, tvm.tirx.const(high, value.ty))

    def clip(x: te.Tensor) -> te.Tensor:
        return _elementwise(x, "clip", change)

    return bb.call_te(clip, call.args[0], primfunc_name_hint="clip")


def _extreme(choose: Callable[[tvm.tirx.PrimExpr, tvm.tirx.PrimExpr], tvm.tirx.PrimExpr], name: str) -> LegalizeFunc:
    """The greater or lesser of two tensors of any shapes that broadcast; NaN where either is."""

    def legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        left, right = call.args
        if isinstance(left, tvm.ir.GenericConst):
            left, right = right, left
        constant = right.value.numpy() if isinstance(right, tvm.ir.GenericConst) else None
        ordered = str(call.ty.dtype).startswith(("int", "uint", "bool"))
        known = ordered or (constant is not None and not np.isnan(constant.astype("float64")).any())
        if constant is not None and constant.ndim == 0 and known:
            scalar = constant.item()

            def with_scalar(x: te.Tensor) -> te.Tensor:
                return _elementwise(x, name, lambda value: choose(value, tvm.tirx.const(scalar, value.ty)))

            return bb.call_te(with_scalar, left, primfunc_name_hint=name)
        shape = call.ty.shape.values

        def of_tensors(x: te.Tensor, y: te.Tensor) -> te.Tensor:
            x, y = topi.broadcast_to(x, shape), topi.broadcast_to(y, shape)

            def pick(*i: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
                chosen = choose(x(*i), y(*i))
                return chosen if known else tvm.tirx.Select(tvm.tirx.isnan(y(*i)), y(*i), chosen)

            return te.compute(shape, pick, name=name, tag=topi.tag.BROADCAST)

        return bb.call_te(of_tensors, left, right, primfunc_name_hint=name)

    return legalize


def _norm(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """layer_norm and rms_norm of any float and any axes; TOPI's take no float64, and of axes not any."""
    axes = [int(axis) % call.ty.ndim for axis in call.attrs.axes]
    terms = math.prod(int(call.ty.shape[axis]) for axis in axes)
    centred = call.op.name == "relax.nn.layer_norm"

    def norm(x: te.Tensor, gamma: te.Tensor, beta: te.Tensor | None = None) -> te.Tensor:
        dtype = "float32" if str(x.dtype) == "float16" else str(x.dtype)

        def mean(values: te.Tensor) -> te.Tensor:
            return topi.divide(topi.sum(values, axes, keepdims=True), tvm.tirx.const(terms, dtype))

        wide = x if dtype == str(x.dtype) else topi.cast(x, dtype)
        distances = topi.subtract(wide, mean(wide)) if centred else wide
        variance = mean(topi.multiply(distances, distances))

        def value(*i: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
            row = [0 if axis in axes else index for axis, index in enumerate(i)]
            weight = [i[axis] for axis in axes]
            normal = distances(*i) * tvm.tirx.rsqrt(variance(*row) + tvm.tirx.const(float(call.attrs.epsilon), dtype))
            scaled = normal * gamma(*weight).astype(dtype)
            return (scaled if beta is None else scaled + beta(*weight).astype(dtype)).astype(str(x.dtype))

        return te.compute(x.shape, value, name="norm")

    return bb.call_te(norm, *call.args, primfunc_name_hint=call.op.name.rpartition(".")[2])


def _group_norm(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """TOPI's, of the distances to each group's first element.

    TOPI takes the variance as mean(x²) - mean(x)², of which little is left where the mean is large; to shift all
    elements of a group changes nothing else.
    """
    attrs = call.attrs
    axes, channel = [int(axis) for axis in attrs.axes], int(attrs.channel_axis)
    size = int(call.ty.shape[channel]) // int(attrs.num_groups)

    def group_norm(x: te.Tensor, gamma: te.Tensor, beta: te.Tensor) -> te.Tensor:
        def distance(*i: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
            first = [0 if axis in axes else index for axis, index in enumerate(i)]
            first[channel] = i[channel] // size * size
            return x(*i) - x(*first)

        distances = te.compute(x.shape, distance, name="distance")
        epsilon = float(attrs.epsilon)
        return topi.nn.group_norm(distances, gamma, beta, int(attrs.num_groups), channel, axes, epsilon)

    return bb.call_te(group_norm, *call.args, primfunc_name_hint="group_norm")


def _reshape(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A kernel only behind a slice, which it then fuses with: what reads the parts of a tensor reads them there."""
    made_by = bb.lookup_binding(call.args[0]) if isinstance(call.args[0], relax.Var) else None
    kernel = made_by.args[0] if isinstance(made_by, relax.Call) and made_by.args else None
    if isinstance(kernel, tvm.ir.GlobalVar) and kernel.name_hint.startswith("strided_slice"):
        return bb.call_te(topi.reshape, call.args[0], call.args[1].values, primfunc_name_hint="reshape")
    return call


def _by_libm(function: str, *, known: bool) -> LegalizeFunc:
    """A function of libm, of float16 computed in float32; known: whether TVM's code generation has a name for it."""

    def change(x: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
        dtype = str(x.ty.dtype)
        wide = x.astype("float32") if dtype == "float16" else x
        if known:
            return getattr(tvm.tirx, function)(wide).astype(dtype)
        name = function if dtype == "float64" else f"{function}f"
        return tvm.tirx.call_pure_extern(str(wide.ty.dtype), name, wide).astype(dtype)

    def legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        return bb.call_te(lambda x: _elementwise(x, function, change), call.args[0], primfunc_name_hint=function)

    return legalize


_LEGALIZATIONS: dict[str, LegalizeFunc] = {
    "relax.nn.relu": _relu,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.group_norm": _group_norm,
    **dict.fromkeys(("relax.nn.layer_norm", "relax.nn.rms_norm"), _norm),
    "relax.reshape": _reshape,
    "relax.clip": _clip,
    **{f"relax.{name}": _by_libm(name, known=True) for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh")},
    **{f"relax.{name}": _by_libm(name, known=False) for name in ("sinh", "cosh")},
    "relax.max": legalize_extreme,
    "relax.maximum": _extreme(_at_least, "maximum"),
    "relax.min": legalize_extreme,
    "relax.minimum": _extreme(_at_most, "minimum"),
}


@tvm.transform.module_pass(opt_level=0, name="Legalize")
def legalize(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Give every operator a kernel, but reshapes that fuse with nothing."""
    return relax.transform.LegalizeOps(_LEGALIZATIONS)(module)
