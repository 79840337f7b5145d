"""The benchmark networks as ONNX models with seeded random weights: `python benchmarks/networks.py resnet50`.

The image networks are the topologies that the onnx package carries for its own tests. Their weights are constants
there, which makes all outputs equal and hides every layout error; here they are drawn anew, scaled so that the signal
keeps its size from layer to layer (He et al., 2015) and the logits stay ordinary.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

LIGHT_NETWORKS = ("resnet50", "squeezenet", "shufflenet", "inception_v1")
NETWORKS = (*LIGHT_NETWORKS, "mlp", "bert4")
SEED = 2026
BATCH_NORM = "BatchNormalization"

MLP_WIDTHS = (128, 1024, 1024, 10)
MLP_BATCH = 32

BERT_LAYERS = 4
BERT_TOKENS = 128
BERT_HIDDEN = 768
BERT_HEADS = 12
BERT_FEED_FORWARD = 3072
BERT_VOCABULARY = 30522

# What a residual branch is scaled by where it is added to the trunk, so that 16 of them do not let the sum grow.
RESIDUAL_SCALE = 0.25

# He et al. have 2, the inverse of the mean square of ReLU(x) for x ~ N(0, 1). Weights whose mean is zero see only its
# variance, 1/2 - 1/(2 pi).
CENTRED_GAIN = 2 * np.pi / (np.pi - 1)


def make_network(name: str) -> ModelProto:
    """Make one of NETWORKS; the same bytes for the same name and NumPy version. ValueError for another name.

    Image networks take float32 [1, 3, 224, 224]; mlp takes float32 [32, 128]; bert4 takes int64 ids [1, 128].
    """
    rng = np.random.default_rng([SEED, *name.encode()])
    if name in LIGHT_NETWORKS:
        return _light_network(name, rng)
    if name == "mlp":
        return _mlp(rng)
    if name == "bert4":
        return _bert(rng)
    raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")


def _light_network(name: str, rng: np.random.Generator) -> ModelProto:
    """Take a topology of the onnx package and give it random weights; its shape and statistics inputs stay."""
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
    for container, values in ((graph.node, nodes), (graph.input, data)):
        del container[:]
        container.extend(values)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    # From IR version 4 on an initializer need not be an input too, which would let every run replace the weights.
    model.ir_version = 4
    onnx.checker.check_model(model, full_check=True)
    return model


def _draw_weights(
    nodes: Sequence[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
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
            # After ReLU all inputs share a positive mean, which would drown what differs between images.
            rows = weights[weight].reshape(-1, fan_in)
            rows -= rows.mean(1, keepdims=True)
            for name in bias:
                normal(name, 0, 0.1)
        elif node.op_type == BATCH_NORM:
            scale, offset, mean, variance = node.input[1:]
            strength = RESIDUAL_SCALE if node.output[0] in branches else 1
            normal(scale, strength, 0.1 * strength)
            normal(offset, 0, 0.1 * strength)
            normal(mean, 0, 0.1)
            weights[variance] = rng.uniform(0.75, 1.25, shapes[variance]).astype(np.float32)
    return weights


class _Graph:
    """Collects nodes and weights under readable names while a network is written down."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], deviation: float, mean: float = 0) -> str:
        return self.constant(name, (mean + deviation * self.rng.standard_normal(shape)).astype(np.float32))

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        node = helper.make_node(kind, list(inputs), [output], name=output)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return output

    def dense(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weight = self.normal(f"{name}.weight", (inputs, outputs), float(np.sqrt(1 / inputs)))
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [product, self.normal(f"{name}.bias", (outputs,), 0.1)], name)

    def layer_norm(self, x: str, name: str, width: int) -> str:
        scale, bias = (self.normal(f"{name}.{part}", (width,), 0.1, mean) for part, mean in (("scale", 1), ("bias", 0)))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-12)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> ModelProto:
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _mlp(rng: np.random.Generator) -> ModelProto:
    """Dense layers 128-1024-1024-10 with ReLU between them, batch 32."""
    graph = _Graph(rng)
    x = "x"
    layers = list(itertools.pairwise(MLP_WIDTHS))
    for number, (inputs, outputs) in enumerate(layers, start=1):
        last = number == len(layers)
        weight = graph.normal(f"dense{number}.weight", (outputs, inputs), float(np.sqrt(2 / inputs)))
        bias = graph.normal(f"dense{number}.bias", (outputs,), 0.1)
        x = graph.node("Gemm", [x, weight, bias], "logits" if last else f"dense{number}", transB=1)
        x = x if last else graph.node("Relu", [x], f"relu{number}")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [MLP_BATCH, MLP_WIDTHS[0]])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [MLP_BATCH, MLP_WIDTHS[-1]])
    return graph.model("mlp", [given], [logits])


def _bert(rng: np.random.Generator) -> ModelProto:
    """Four encoder layers of BERT-base's geometry (Devlin et al., 2019) over 128 tokens: ids -> hidden states."""
    graph = _Graph(rng)
    words = graph.normal("embeddings.word", (BERT_VOCABULARY, BERT_HIDDEN), 1)
    positions = graph.normal("embeddings.position", (1, BERT_TOKENS, BERT_HIDDEN), 0.5)
    x = graph.node("Gather", [words, "ids"], "embeddings.gathered", axis=0)
    x = graph.node("Add", [x, positions], "embeddings.sum")
    x = graph.layer_norm(x, "embeddings.norm", BERT_HIDDEN)
    graph.constant("split", np.array([1, BERT_TOKENS, BERT_HEADS, BERT_HIDDEN // BERT_HEADS], np.int64))
    graph.constant("join", np.array([1, BERT_TOKENS, BERT_HIDDEN], np.int64))
    graph.constant("root", np.array(np.sqrt(BERT_HIDDEN / BERT_HEADS), np.float32))
    graph.constant("one", np.array(1, np.float32))
    graph.constant("half", np.array(0.5, np.float32))
    graph.constant("root2", np.array(np.sqrt(2), np.float32))
    for layer in range(BERT_LAYERS):
        x = _bert_layer(graph, x, f"layer{layer}", "hidden" if layer == BERT_LAYERS - 1 else f"layer{layer}.output")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, BERT_TOKENS])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, BERT_TOKENS, BERT_HIDDEN])
    return graph.model("bert4", [ids], [hidden])


def _bert_layer(graph: _Graph, x: str, name: str, output: str) -> str:
    """Self-attention and a feed-forward block, each added to what it read and normalised."""
    heads = {}
    for part, permutation in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        y = graph.dense(x, f"{name}.{part}", BERT_HIDDEN, BERT_HIDDEN)
        y = graph.node("Reshape", [y, "split"], f"{name}.{part}.split")
        heads[part] = graph.node("Transpose", [y], f"{name}.{part}.heads", perm=permutation)
    y = graph.node("MatMul", [heads["query"], heads["key"]], f"{name}.scores")
    y = graph.node("Div", [y, "root"], f"{name}.scaled")
    y = graph.node("Softmax", [y], f"{name}.attention", axis=-1)
    y = graph.node("MatMul", [y, heads["value"]], f"{name}.mixed")
    y = graph.node("Transpose", [y], f"{name}.mixed.heads", perm=[0, 2, 1, 3])
    y = graph.node("Reshape", [y, "join"], f"{name}.mixed.join")
    y = graph.dense(y, f"{name}.projection", BERT_HIDDEN, BERT_HIDDEN)
    x = graph.node("Add", [y, x], f"{name}.attended")
    x = graph.layer_norm(x, f"{name}.attended.norm", BERT_HIDDEN)

    y = graph.dense(x, f"{name}.expand", BERT_HIDDEN, BERT_FEED_FORWARD)
    # GELU as op-set 17 spells it: x / 2 · (1 + erf(x / √2)).
    gate = graph.node("Div", [y, "root2"], f"{name}.gelu.scaled")
    gate = graph.node("Erf", [gate], f"{name}.gelu.erf")
    gate = graph.node("Add", [gate, "one"], f"{name}.gelu.gate")
    y = graph.node("Mul", [y, gate], f"{name}.gelu.gated")
    y = graph.node("Mul", [y, "half"], f"{name}.gelu")
    y = graph.dense(y, f"{name}.contract", BERT_FEED_FORWARD, BERT_HIDDEN)
    x = graph.node("Add", [y, x], f"{name}.sum")
    return graph.layer_norm(x, output, BERT_HIDDEN)


def main() -> None:
    """Write one network to a file."""
    parser = argparse.ArgumentParser(description="Write a benchmark network with seeded random weights as ONNX.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("-o", "--output", type=Path, help="default: NETWORK.onnx")
    arguments = parser.parse_args()
    output = arguments.output or Path(f"{arguments.network}.onnx")
    onnx.save(make_network(arguments.network), output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
