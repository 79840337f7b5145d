"""Takes the bytes of large weights out of a model while it passes through onnx's C++ code, which copies all of it.

It is also what lets a model of more than 2 GB through: protobuf serializes no more than that.
"""

from __future__ import annotations

import onnx

_LARGE_BYTES = 4096  # scales and axes, which the conversions look into, are far smaller
_SHAPES = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})  # and a list of these may be a shape


def detach_weights(model: onnx.ModelProto) -> dict[str, bytes]:
    """Empty the large initializers of the main graph, in place: name → bytes, for `attach_weights`."""
    weights = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2 and tensor.data_type in _SHAPES:
            continue  # inference computes with lists of integers of any length
        if tensor.HasField("raw_data") and len(tensor.raw_data) > _LARGE_BYTES:
            weights[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
    return weights


def attach_weights(model: onnx.ModelProto, weights: dict[str, bytes]) -> onnx.ModelProto:
    """Give the initializers of `model` the bytes back that `detach_weights` took. Changes `model`."""
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = weights[tensor.name]
    return model
