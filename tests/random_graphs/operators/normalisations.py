"""Normalisations: of layers, groups, instances, batches, and by norms."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.graph import FLOATS, Graph, Rejected, Tensor

# ONNX defines their mean and deviation in float32, so that float64 would have no more digits than those.
_WITH_FLOAT_STATISTICS = tuple(dtype for dtype in FLOATS if dtype != "float64")


def _channels(g: Graph, x: Tensor, *, scale: bool = False) -> Tensor:
    value = g.normal(x.shape[1:2], x.dtype)
    return g.weight((np.abs(value) + 0.25).astype(x.dtype) if scale else value)


def batch_norm(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=2)
    parameters = [_channels(g, x), _channels(g, x), _channels(g, x), _channels(g, x, scale=True)]
    return g.op("BatchNormalization", [x, *parameters], epsilon=g.choices.of((None, 1e-3)))


def instance_norm(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=3)
    return g.op("InstanceNormalization", [x, _channels(g, x), _channels(g, x)], epsilon=g.choices.of((None, 1e-2)))


def layer_norm(g: Graph) -> Tensor:
    x = g.pick(_WITH_FLOAT_STATISTICS, low=1)
    axis = g.axis(x)
    shape = x.shape[axis % x.rank :]
    inputs = [x, g.weight(g.normal(shape, x.dtype))]
    if g.choices.odds(0.6):
        inputs.append(g.weight(g.normal(shape, x.dtype)))
    outputs = g.choices.of((1, 1, 3))
    return g.ops("LayerNormalization", inputs, outputs, axis=axis, epsilon=g.choices.of((None, 1e-3)))[0]


def rms_norm(g: Graph) -> Tensor:
    x = g.pick(_WITH_FLOAT_STATISTICS, low=1)
    axis = g.axis(x)
    scale = g.weight(g.normal(x.shape[axis % x.rank :], x.dtype))
    return g.op("RMSNormalization", [x, scale], axis=axis, epsilon=g.choices.of((None, 1e-3)))


def group_norm(g: Graph) -> Tensor:
    x = g.pick(_WITH_FLOAT_STATISTICS, low=3)
    groups = g.choices.of([d for d in range(1, x.shape[1] + 1) if x.shape[1] % d == 0])
    if g.opset >= 18 and g.choices.odds(0.6):
        count = x.shape[1] if g.opset >= 21 else groups
        parameters = [g.weight(g.normal((count,), x.dtype)) for _ in range(2)]
        return g.op("GroupNormalization", [x, *parameters], num_groups=groups, epsilon=1e-3)
    flat = g.reshape(x, (x.shape[0], groups, -1))
    ones, zeros = (g.constant(np.full((groups,), value, x.dtype)) for value in (1, 0))
    normed = g.op("InstanceNormalization", [flat, ones, zeros], epsilon=1e-3)
    shape = (x.shape[1], *(1 for _ in x.shape[2:]))
    return g.op("Mul", [g.reshape(normed, x.shape), g.weight(g.normal(shape, x.dtype))])


def lp_norm(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=1)
    return g.op("LpNormalization", [x], axis=g.axis(x), p=g.choices.of((None, 1, 2)))


def response_norm(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1], low=4, high=4)
    size = g.choices.of((1, 3, 5, 7))
    return g.op("LRN", [x], size=size, alpha=g.choices.of((1e-4, 0.1)), beta=g.choices.of((0.75, 0.5)), bias=1.5)


def mean_variance(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1], low=4, high=4)
    axes = g.choices.of((None, [0, 2, 3], [2, 3], [-1]))
    if axes is not None and any(x.shape[axis] == 1 for axis in axes):
        raise Rejected("no variance")
    return g.op("MeanVarianceNormalization", [x], axes=axes)


OPERATORS = (
    batch_norm, batch_norm, instance_norm, layer_norm, layer_norm, rms_norm, group_norm, lp_norm, response_norm,
    mean_variance,
)  # fmt: skip
