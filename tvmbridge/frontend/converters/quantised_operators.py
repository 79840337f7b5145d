"""ONNX Runtime's operators on quantised tensors, which its quantiser writes in operator form (domain com.microsoft).

Each is computed on the values that its operands stand for, and its result is quantised, as ONNX Runtime defines it.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from tvmbridge.frontend.converters.convolutions import find_window
from tvmbridge.frontend.converters.quantisation import (
    by_column,
    cast,
    centred,
    requantised,
    saturated,
    scalar,
)
from tvmbridge.frontend.operator import Converter, Operator


def _value(op: Operator, position: int) -> relax.Expr:
    """What the quantised operand there stands for; its scale and zero point follow it."""
    x, scale, zero = cast(op, op.input(position), "float32"), scalar(op, position + 1), scalar(op, position + 2)
    assert scale is not None
    if zero is not None:
        x = op.emit(relax.op.subtract(x, cast(op, zero, "float32")))
    return op.emit(relax.op.multiply(x, scale))


def _quantised(op: Operator, x: relax.Expr, position: int, dtype: str = "") -> relax.Expr:
    """x by the scale and zero point there, of the zero point's type or where there is none of `dtype`."""
    scale, zero = scalar(op, position), scalar(op, position + 1)
    assert scale is not None
    steps = op.emit(relax.op.divide(x, scale))
    return saturated(op, steps, op.type(position + 1) if zero is not None else dtype or op.type(0), zero)


def _binary(operator: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Converter:
    def convert(op: Operator) -> relax.Expr:
        return _quantised(op, op.emit(operator(_value(op, 0), _value(op, 3))), 6)

    return convert


def _unary(operator: Callable[[Operator, relax.Expr], relax.Expr]) -> Converter:
    def convert(op: Operator) -> relax.Expr:
        return _quantised(op, op.emit(operator(op, _value(op, 0))), 3)

    return convert


def _sigmoid(_op: Operator, x: relax.Expr) -> relax.Expr:
    return relax.op.sigmoid(x)


def _leaky_relu(op: Operator, x: relax.Expr) -> relax.Expr:
    return relax.op.nn.leakyrelu(x, op.attribute("alpha", 0.01))


def _softmax(op: Operator, x: relax.Expr) -> relax.Expr:
    """Before op-set 13 over all axes from the given one on."""
    shape, old = op.shape(0), op.attribute("opset", 13) < 13
    axis = op.attribute("axis", 1 if old else -1) % len(shape)
    if not old:
        return relax.op.nn.softmax(x, axis)
    flat = op.emit(relax.op.reshape(x, (*shape[:axis], -1)))
    return relax.op.reshape(op.emit(relax.op.nn.softmax(flat, axis)), shape)


def _spatial_axes(op: Operator) -> list[int]:
    rank = len(op.shape(0))
    return list(range(1, rank - 1) if op.attribute("channels_last", 0) else range(2, rank))


def _global_average_pool(op: Operator, x: relax.Expr) -> relax.Expr:
    return relax.op.mean(x, _spatial_axes(op), keepdims=True)


def _average_pool(op: Operator, x: relax.Expr) -> relax.Expr:
    given = [op.shape(0)[axis] for axis in _spatial_axes(op)]
    if len(given) not in (1, 2) or op.attribute("ceil_mode", 0):
        op.refuse("ceil_mode, or more than two axes")
    build, layout = (relax.op.nn.avg_pool1d, "NCW") if len(given) == 1 else (relax.op.nn.avg_pool2d, "NCHW")
    if op.attribute("channels_last", 0):
        layout = layout.replace("C", "") + "C"
    window = find_window(op, op.attribute("kernel_shape"), given)
    pads = bool(op.attribute("count_include_pad", 0))
    return build(x, window.kernel, window.strides, window.pads, window.dilations, False, pads, layout)


def _concat(op: Operator) -> relax.Expr:
    parts = [_value(op, position) for position in range(2, len(op.operands), 3)]
    return _quantised(op, op.emit(relax.op.concat(parts, op.attribute("axis"))), 0, op.type(2))


def _where(op: Operator) -> relax.Expr:
    chosen = op.emit(relax.op.where(op.input(0), _value(op, 1), _value(op, 4)))
    return _quantised(op, chosen, 7, op.type(1))


def _gemm(op: Operator) -> relax.Expr:
    """Exact sums of int32, the bias among them; a float result where no scale of the result is given."""
    a, b = (
        op.emit(relax.op.permute_dims(op.input(position), [1, 0])) if op.attribute(name, 0) else op.input(position)
        for position, name in ((0, "transA"), (3, "transB"))
    )
    a, b = centred(op, a, scalar(op, 2)), centred(op, b, by_column(op, 5))
    sums = op.emit(relax.op.matmul(a, b))
    if op.has(6):
        sums = op.emit(relax.op.add(sums, op.input(6)))
    first, second = scalar(op, 1), by_column(op, 4)
    assert first is not None and second is not None
    first = op.emit(relax.op.multiply(first, relax.const(op.attribute("alpha", 1.0), "float32")))
    made = scalar(op, 7)
    if made is None:
        factor = op.emit(relax.op.multiply(first, second))
        return relax.op.multiply(cast(op, sums, "float32"), factor)
    zero = scalar(op, 8)
    return requantised(op, sums, (first, second, made), op.type(8) if zero is not None else op.type(0), zero)


CONVERTERS: dict[str, Converter] = {
    "com.microsoft.QGemm": _gemm,
    "com.microsoft.QLinearAdd": _binary(relax.op.add),
    "com.microsoft.QLinearAveragePool": _unary(_average_pool),
    "com.microsoft.QLinearConcat": _concat,
    "com.microsoft.QLinearGlobalAveragePool": _unary(_global_average_pool),
    "com.microsoft.QLinearLeakyRelu": _unary(_leaky_relu),
    "com.microsoft.QLinearMul": _binary(relax.op.multiply),
    "com.microsoft.QLinearSigmoid": _unary(_sigmoid),
    "com.microsoft.QLinearSoftmax": _unary(_softmax),
    "com.microsoft.QLinearWhere": _where,
}
