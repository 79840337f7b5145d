"""Writes a network down: nodes and random weights under readable names, and the ONNX model that they make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

# He et al. (2015) have 2, the inverse of the mean square of ReLU(x) for x ~ N(0, 1). Weights whose mean is zero see
# only its variance, 1/2 - 1/(2 pi).
CENTRED_GAIN = 2 * np.pi / (np.pi - 1)


def centre_rows(weight: np.ndarray, fan_in: int) -> None:
    """Take from the weights of each output, `fan_in` in a row, their mean, in place.

    After ReLU all inputs share a positive mean, which would drown what differs between images.
    """
    rows = weight.reshape(-1, fan_in)
    rows -= rows.mean(1, keepdims=True)


class Graph:
    """Collects nodes and weights under readable names while a network is written down."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a tensor under its name, which is returned."""
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], deviation: float, mean: float = 0) -> str:
        """Add a float32 tensor of normally distributed values."""
        return self.constant(name, (mean + deviation * self.rng.standard_normal(shape)).astype(np.float32))

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Add an operator with one output, whose name it shares and which is returned."""
        node = helper.make_node(kind, list(inputs), [output], name=output)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return output

    def dense(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """Add a dense layer over the last axis of anything, as exporters write it: MatMul and Add."""
        weight = self.normal(f"{name}.weight", (inputs, outputs), float(np.sqrt(1 / inputs)))
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [product, self.normal(f"{name}.bias", (outputs,), 0.1)], name)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        """Add a layer norm over the last axis."""
        scale, bias = (self.normal(f"{name}.{part}", (width,), 0.1, mean) for part, mean in (("scale", 1), ("bias", 0)))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-12)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> ModelProto:
        """Make the model of all that was added, checked."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model
