"""Our own converters of ONNX operators, for those that TVM's importer turns into opaque kernels or computes otherwise.

TVM imports Clip and Pad as calls of finished kernels, and Sum, Mean, Max and Min as stack and reduce: no later pass
sees through either. Elu, Selu and ThresholdedRelu it writes in float32 only. Here all are plain operators of Relax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tvmbridge.frontend.walk import opset

_UNBOUNDED = (-np.inf, np.inf)
_Inputs = Sequence[Any]  # relax.Expr, or None where an input is absent
_Attributes = Mapping[str, Any]
Converter = Callable[[relax.BlockBuilder, _Inputs, _Attributes], "relax.Expr | None"]


def import_graph(model: onnx.ModelProto) -> tvm.IRModule:
    """Convert a graph whose operators all have converters; raises whatever a converter raises."""
    return _Importer({}, "float32").from_onnx(model.graph, opset(model) or 1)


class _Importer(ONNXGraphImporter):
    """TVM's importer, which asks our converters first; one that gives None leaves the node to TVM's."""

    def _convert_operator(self, op_name: str, inputs: _Inputs, attrs: dict[str, Any], opset: int) -> relax.Expr:
        converter = _CONVERTERS.get(op_name)
        given = [inputs[i] for i in range(len(inputs))]
        known = all(isinstance(tensor.ty, relax.TensorType) for tensor in given if tensor is not None)
        converted = converter(self.bb, given, attrs) if converter and known else None
        if converted is None:
            return super()._convert_operator(op_name, inputs, attrs, opset)
        return self.bb.normalize(converted)


def _at(inputs: _Inputs, position: int) -> relax.Expr | None:
    return inputs[position] if position < len(inputs) else None


def _array(expr: relax.Expr | None) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def _dtype(expr: relax.Expr) -> str:
    return str(expr.ty.dtype)


def _limits(dtype: str) -> tuple[float, float]:
    if dtype.startswith("float"):
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _clip(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr:
    """A bound that is absent is the dtype's own, so that infinities are cut; one that is NaN does not bind."""
    x, dtype = inputs[0], _dtype(inputs[0])
    bounds: list[float | relax.Expr] = []
    for position, name, limit, unbounded in zip((1, 2), ("min", "max"), _limits(dtype), _UNBOUNDED, strict=True):
        bound = _at(inputs, position)
        known = np.asarray(attributes.get(name, limit)) if bound is None else _array(bound)
        if known is None:
            bounds.append(bound)
        else:
            bounds.append(unbounded if np.isnan(known).any() else known.item())
    low, high = bounds
    if not isinstance(low, relax.Expr) and not isinstance(high, relax.Expr):
        return relax.op.clip(x, tvm.tirx.const(low, dtype), tvm.tirx.const(high, dtype))
    for bound, unbounded, choose in zip(bounds, _UNBOUNDED, (relax.op.maximum, relax.op.minimum), strict=True):
        operand = bound if isinstance(bound, relax.Expr) else relax.const(bound, dtype)
        if dtype.startswith("float") and isinstance(bound, relax.Expr):
            odd = bb.emit(relax.op.isnan(operand))
            operand = bb.emit(relax.op.where(odd, relax.const(unbounded, dtype), operand))
        x = bb.emit(choose(x, operand))
    return x


def _chain(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    def convert(bb: relax.BlockBuilder, inputs: _Inputs, _: _Attributes) -> relax.Expr:
        return functools.reduce(lambda left, right: bb.emit(operator(left, right)), inputs)

    return convert


def _mean(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr:
    total = _chain(relax.op.add)(bb, inputs, attributes)
    return relax.op.divide(total, relax.const(len(inputs), _dtype(inputs[0]))) if len(inputs) > 1 else total


_PAD_MODES = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}


def _pad(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr | None:
    """Pads that crop, or that only the run decides, are left to TVM."""
    rank, dtype = inputs[0].ty.ndim, _dtype(inputs[0])
    pads = np.asarray(attributes["pads"]) if "pads" in attributes else _array(_at(inputs, 1))
    value = np.asarray(attributes.get("value", 0)) if _at(inputs, 2) is None else _array(inputs[2])
    axes = np.arange(rank) if _at(inputs, 3) is None else _array(inputs[3])
    mode = attributes.get("mode", b"constant")
    if pads is None or value is None or axes is None or mode not in _PAD_MODES or (pads < 0).any():
        return None
    if dtype.startswith(("int64", "uint64")) and abs(value.item()) >= 2**53:  # more than the operator's float holds
        return None
    width = np.zeros((rank, 2), np.int64)
    width[axes % rank] = pads.reshape(2, -1).T
    if not width.any():
        return inputs[0]
    return relax.op.nn.pad(inputs[0], width.ravel().tolist(), _PAD_MODES[mode], value.item())


def _halves(bb: relax.BlockBuilder, x: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """max(x, 0) and min(x, 0): each is NaN where x is, and to add them up takes no choice that fused code repeats."""
    zero = relax.const(0, _dtype(x))
    return bb.emit(relax.op.maximum(x, zero)), bb.emit(relax.op.minimum(x, zero))


def _exponential(bb: relax.BlockBuilder, x: relax.Expr, alpha: float, gamma: float) -> relax.Expr:
    """gamma * (x above 0, alpha * (exp(x) - 1) elsewhere)."""
    dtype = _dtype(x)
    above, below = _halves(bb, x)
    grown = bb.emit(relax.op.subtract(bb.emit(relax.op.exp(below)), relax.const(1, dtype)))
    if gamma != 1:
        above = bb.emit(relax.op.multiply(above, relax.const(gamma, dtype)))
    return relax.op.add(above, bb.emit(relax.op.multiply(grown, relax.const(alpha * gamma, dtype))))


def _elu(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr:
    return _exponential(bb, inputs[0], attributes.get("alpha", 1.0), 1)


def _selu(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr:
    alpha = attributes.get("alpha", 1.67326319217681884765625)
    return _exponential(bb, inputs[0], alpha, attributes.get("gamma", 1.05070102214813232421875))


def _prelu(bb: relax.BlockBuilder, inputs: _Inputs, _: _Attributes) -> relax.Expr:
    above, below = _halves(bb, inputs[0])
    return relax.op.add(above, bb.emit(relax.op.multiply(below, inputs[1])))


def _thresholded_relu(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr:
    dtype = _dtype(inputs[0])
    above = bb.emit(relax.op.greater(inputs[0], relax.const(attributes.get("alpha", 1.0), dtype)))
    return relax.op.where(above, inputs[0], relax.const(0, dtype))


def _gather(bb: relax.BlockBuilder, inputs: _Inputs, attributes: _Attributes) -> relax.Expr | None:
    """The extent from which negative indices count back is known here; TVM would compute it in each run."""
    data, indices = inputs
    extent = data.ty.shape[attributes.get("axis", 0)]
    known, dtype = _array(indices), _dtype(indices)
    if not isinstance(extent, tvm.tirx.IntImm) or (known is not None and isinstance(data, tvm.ir.GenericConst)):
        return None
    count = int(extent)
    if known is not None:
        indices = relax.const(np.where(known < 0, known + count, known).astype(dtype), dtype)
    else:
        negative = bb.emit(relax.op.less(indices, relax.const(0, dtype)))
        wrapped = bb.emit(relax.op.add(indices, relax.const(count, dtype)))
        indices = bb.emit(relax.op.where(negative, wrapped, indices))
    return relax.op.take(data, indices, attributes.get("axis", 0), mode="fast")


_CONVERTERS: dict[str, Converter] = {
    "Clip": _clip,
    "Elu": _elu,
    "Gather": _gather,
    "Max": _chain(relax.op.maximum),
    "Mean": _mean,
    "Min": _chain(relax.op.minimum),
    "PRelu": _prelu,
    "Pad": _pad,
    "Selu": _selu,
    "Sum": _chain(relax.op.add),
    "ThresholdedRelu": _thresholded_relu,
}
