"""Quantised values: scales and zero points per tensor and per axis, whole-number products."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.graph import FLOATS, Graph, Rejected, Tensor

_NARROW = ("uint8", "int8")


def _zero_point(g: Graph, shape: tuple[int, ...], dtype: str) -> Tensor:
    value = g.generator.integers(100, 150, shape) if dtype == "uint8" else g.generator.integers(-10, 11, shape)
    return g.constant(np.asarray(value).astype(dtype))


def _scales(g: Graph, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    return g.constant(np.asarray(g.generator.uniform(0.02, 0.2, shape)).astype(dtype))


def quantize(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1])
    axis = g.choices.integer(0, x.rank - 1) if g.opset >= 13 and x.rank and g.choices.odds(0.4) else None
    shape = () if axis is None else (x.shape[axis],)
    dtype = g.choices.of(_NARROW)
    inputs = [x, _scales(g, shape)]
    if g.choices.odds(0.8):
        inputs.append(_zero_point(g, shape, dtype))
    return g.op("QuantizeLinear", inputs, axis=axis)


def dequantize(g: Graph) -> Tensor:
    x = g.pick((*_NARROW, "int32"))
    axis = g.choices.integer(0, x.rank - 1) if g.opset >= 13 and x.rank and g.choices.odds(0.4) else None
    shape = () if axis is None else (x.shape[axis],)
    inputs = [x, _scales(g, shape)]
    if x.dtype != "int32" and g.choices.odds(0.8):
        inputs.append(_zero_point(g, shape, x.dtype))
    return g.op("DequantizeLinear", inputs, axis=axis)


def pair(g: Graph) -> Tensor:
    """Quantised and back, as quantised models spell every edge."""
    x = g.pick(FLOATS[:1])
    scale, zero = _scales(g, ()), _zero_point(g, (), "uint8")
    return g.op("DequantizeLinear", [g.op("QuantizeLinear", [x, scale, zero]), scale, zero])


def dynamic(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1])
    return g.ops("DynamicQuantizeLinear", [x], 3)[0]


def whole_matmul(g: Graph) -> Tensor:
    x = g.pick(_NARROW, low=2, high=3)
    dtype = g.choices.of(_NARROW)
    other = g.weight(g.data((x.shape[-1], g.choices.of((1, 5, 16))), dtype))
    zeros = [_zero_point(g, (), x.dtype), _zero_point(g, (), dtype)] if g.choices.odds(0.6) else []
    return g.op("MatMulInteger", [x, other, *zeros])


def linear_matmul(g: Graph) -> Tensor:
    x = g.pick(_NARROW, low=2, high=3)
    other = g.weight(g.data((x.shape[-1], g.choices.of((1, 5, 16))), x.dtype))
    inputs: list[Tensor | None] = []
    for operand in (x, other):
        inputs += [operand, _scales(g, ()), _zero_point(g, (), operand.dtype)]
    return g.op("QLinearMatMul", [*inputs, g.scalar(0.3, "float32"), _zero_point(g, (), x.dtype)])


def whole_convolution(g: Graph) -> Tensor:
    x = g.pick(("uint8",), low=4, high=4)
    if min(x.shape[2:]) < 2 or x.shape[1] > 16:
        raise Rejected("too small")
    filters = g.weight(g.data((g.choices.of((1, 4, 5)), x.shape[1], 2, 2), "uint8"))
    pads = g.choices.of((None, [1, 1, 1, 1], [0, 1, 0, 0]))
    return g.op("ConvInteger", [x, filters, _zero_point(g, (), "uint8"), _zero_point(g, (), "uint8")], pads=pads)


def linear_convolution(g: Graph) -> Tensor:
    x = g.pick(_NARROW, low=4, high=4)
    if min(x.shape[2:]) < 2 or x.shape[1] > 16:
        raise Rejected("too small")
    count = g.choices.of((1, 4, 5))
    filters = g.weight(g.data((count, x.shape[1], 2, 2), x.dtype))
    scales = _scales(g, (count,) if g.choices.odds(0.4) else ())
    inputs = [x, _scales(g, ()), _zero_point(g, (), x.dtype), filters, scales, _zero_point(g, scales.shape, x.dtype)]
    inputs += [g.scalar(0.4, "float32"), _zero_point(g, (), x.dtype)]
    if g.choices.odds(0.5):
        inputs.append(g.weight(g.data((count,), "int32")))
    return g.op("QLinearConv", inputs, pads=g.choices.of((None, [1, 1, 1, 1])))


OPERATORS = (
    quantize, quantize, dequantize, dequantize, pair, pair, dynamic, whole_matmul, linear_matmul, whole_convolution,
    linear_convolution,
)  # fmt: skip
