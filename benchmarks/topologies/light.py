"""The image networks that the onnx package carries for its own tests, with random weights instead of constant ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from topologies.graph import CENTRED_GAIN, centre_rows

LIGHT_NETWORKS = ("resnet50", "squeezenet", "shufflenet", "inception_v1")
BATCH_NORM = "BatchNormalization"

# What a residual branch is scaled by where it is added to the trunk, so that 16 of them do not let the sum grow.
RESIDUAL_SCALE = 0.25


def light_network(name: str, batch: int, rng: np.random.Generator) -> ModelProto:
    """Take a topology of the onnx package and give it random weights and a batch; its other constants stay."""
    package = Path(onnx.__file__).parent
    model = onnx.load(package / "backend" / "test" / "data" / "light" / f"light_{name}.onnx")
    graph = model.graph
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {name: value.shape for name, value in kept.items()}
    fillers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    shapes.update({node.output[0]: tuple(int(axis) for axis in kept[node.input[0]]) for node in fillers})
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]

    weights = _draw_weights(nodes, shapes, rng)
    used = {name for node in nodes for name in node.input}
    weights.update({name: value for name, value in kept.items() if name in used and name not in weights})
    data = [value for value in graph.input if value.name in used and value.name not in weights]
    _set_batch(batch, nodes, [*data, *graph.output], weights)
    for container, values in ((graph.node, nodes), (graph.input, data)):
        del container[:]
        container.extend(values)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    # From IR version 4 on an initializer need not be an input too, which would let every run replace the weights.
    model.ir_version = 4
    onnx.checker.check_model(model, full_check=True)
    return model


def _set_batch(
    batch: int, nodes: Sequence[NodeProto], values: Sequence[ValueInfoProto], weights: dict[str, np.ndarray]
) -> None:
    """Give what goes in, what comes out and what is reshaped on the way another first axis than the 1 it has."""
    for value in values:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for node in nodes:
        if node.op_type == "Reshape" and node.input[0] not in weights:
            shape = weights[node.input[1]]
            weights[node.input[1]] = np.array([batch, *shape[1:]], shape.dtype)


def _draw_weights(
    nodes: Sequence[NodeProto], shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw what convolutions, batch norms and dense layers read, by the part that each tensor plays."""
    producer = {output: node for node in nodes for output in node.output}
    sums = [node.input for node in nodes if node.op_type == "Sum"]
    # Where both terms are batch norms, the trunk itself was projected anew, and nothing needs to be held down.
    branches = {name for terms in sums for name in terms if {producer[term].op_type for term in terms} != {BATCH_NORM}}
    weights: dict[str, np.ndarray] = {}

    def normal(name: str, mean: float, deviation: float) -> None:
        weights[name] = (mean + deviation * rng.standard_normal(shapes[name])).astype(np.float32)

    for node in nodes:
        if node.op_type in ("Conv", "Gemm"):
            weight, *bias = node.input[1:]
            if weight in producer:  # inception_v1 reshapes the weight of its dense layer: draw what is reshaped
                weight = producer[weight].input[0]
            shape = shapes[weight]
            # [out, in / group, kernel…] or [1, 1, out, in]: what one output sums over.
            fan_in = shape[-1] if node.op_type == "Gemm" else int(np.prod(shape[1:]))
            normal(weight, 0, float(np.sqrt(CENTRED_GAIN / fan_in)))
            centre_rows(weights[weight], fan_in)
            for name in bias:
                normal(name, 0, 0.1)
        elif node.op_type == BATCH_NORM:
            scale, offset, mean, variance = node.input[1:]
            strength = RESIDUAL_SCALE if node.output[0] in branches else 1
            normal(scale, strength, 0.1 * strength)
            normal(offset, 0, 0.1 * strength)
            normal(mean, 0, 0.1)
            weights[variance] = rng.uniform(0.75, 1.25, shapes[variance]).astype(np.float32)
        elif node.op_type in ("Mul", "Add"):  # densenet121 and inception_v2 scale and shift the channels apart
            maker = producer.get(node.input[1])
            if maker is not None and maker.op_type == "Unsqueeze" and maker.input[0] in shapes:
                normal(maker.input[0], 1 if node.op_type == "Mul" else 0, 0.1)
    return weights
