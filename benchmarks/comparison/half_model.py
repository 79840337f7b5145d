"""An ONNX model with float16 inside and its own types at its inputs and outputs, for ONNX Runtime on CUDA."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def half_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 weights and arithmetic are float16. For models without attributes or Casts of float32."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights and _is_float(value)]
    outputs = [value.name for value in graph.output if _is_float(value)]
    inside = {name: f"{name} (float16)" for name in [*inputs, *outputs]}
    nodes = []
    for node in graph.node:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        for names in (renamed.input, renamed.output):
            names[:] = [inside.get(name, name) for name in names]
        nodes.append(renamed)
    begin = [helper.make_node("Cast", [name], [inside[name]], to=TensorProto.FLOAT16) for name in inputs]
    end = [helper.make_node("Cast", [inside[name]], [name], to=TensorProto.FLOAT) for name in outputs]
    del graph.node[:]
    graph.node.extend([*begin, *nodes, *end])
    return half


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT
