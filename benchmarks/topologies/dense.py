"""A plain stack of dense layers."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import ModelProto, TensorProto, helper

from topologies.graph import Graph

WIDTHS = (128, 1024, 1024, 10)


def mlp(batch: int, rng: np.random.Generator) -> ModelProto:
    """Dense layers 128-1024-1024-10 with ReLU between them: float32 [batch, 128] -> logits [batch, 10]."""
    graph = Graph(rng)
    x = "x"
    layers = list(itertools.pairwise(WIDTHS))
    for number, (inputs, outputs) in enumerate(layers, start=1):
        last = number == len(layers)
        weight = graph.normal(f"dense{number}.weight", (outputs, inputs), float(np.sqrt(2 / inputs)))
        bias = graph.normal(f"dense{number}.bias", (outputs,), 0.1)
        x = graph.node("Gemm", [x, weight, bias], "logits" if last else f"dense{number}", transB=1)
        x = x if last else graph.node("Relu", [x], f"relu{number}")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTHS[0]])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, WIDTHS[-1]])
    return graph.model("mlp", [given], [logits])
