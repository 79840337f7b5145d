"""ONNX Runtime without its own optimisations: what each node gives, and what the whole graph gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

Arrays = Mapping[str, np.ndarray]


class ReferenceError(Exception):
    """ONNX Runtime takes no such model, or fails on these inputs."""


class Reference:
    """A model loaded into ONNX Runtime as it is written: no fusion, no folding, one thread."""

    def __init__(self, model: onnx.ModelProto) -> None:
        onnxruntime.set_default_logger_severity(4)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            data = model.SerializeToString()
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # its C++ exceptions share no base class
            raise ReferenceError(str(exc)) from exc
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))
        except Exception as exc:  # as above
            raise ReferenceError(str(exc)) from exc


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    constants: Arrays,
    outputs: Mapping[str, np.ndarray | None],
    opset: int,
) -> onnx.ModelProto:
    """A model of these nodes. inputs: arrays of their shapes and dtypes; outputs: likewise, None where not known."""
    graph = helper.make_graph(
        nodes,
        "random",
        [_value_info(name, array) for name, array in inputs.items()],
        [_value_info(name, array) for name, array in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets)))


def reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= {name for inner in attribute.g.node for name in reads(inner)}
    return names


def _value_info(name: str, array: np.ndarray | None) -> onnx.ValueInfoProto:
    if array is None:
        return helper.make_empty_tensor_value_info(name)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
