"""Transformer encoders: BERT's over token ids, ViT's over the patches of an image."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import ModelProto, TensorProto, helper

from topologies.graph import Graph

VOCABULARY = 30522
CLASSES = 1000
IMAGE = 224
PATCH = 16


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The geometry of a stack of encoder layers."""

    layers: int
    tokens: int
    hidden: int
    heads: int
    feed_forward: int


BERT4 = Encoder(layers=4, tokens=128, hidden=768, heads=12, feed_forward=3072)
VIT_TINY = Encoder(layers=12, tokens=(IMAGE // PATCH) ** 2 + 1, hidden=192, heads=3, feed_forward=768)


def bert4(batch: int, rng: np.random.Generator) -> ModelProto:
    """Four layers of BERT-base's geometry (Devlin et al., 2019): int64 ids [batch, 128] -> [batch, 128, 768]."""
    size = BERT4
    graph = Graph(rng)
    words = graph.normal("embeddings.word", (VOCABULARY, size.hidden), 1)
    positions = graph.normal("embeddings.position", (1, size.tokens, size.hidden), 0.5)
    x = graph.node("Gather", [words, "ids"], "embeddings.gathered", axis=0)
    x = graph.node("Add", [x, positions], "embeddings.sum")
    x = graph.layer_norm(x, "embeddings.norm", size.hidden)
    _layer_constants(graph, size, batch)
    for layer in range(size.layers):
        x = _bert_layer(graph, x, f"layer{layer}", "hidden" if layer == size.layers - 1 else f"layer{layer}.output")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, size.tokens])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [batch, size.tokens, size.hidden])
    return graph.model("bert4", [ids], [hidden])


def vit_tiny(batch: int, rng: np.random.Generator) -> ModelProto:
    """ViT-tiny (Touvron et al., 2021): float32 [batch, 3, 224, 224], 196 patches, 1 class token -> logits."""
    size = VIT_TINY
    graph = Graph(rng)
    weight = graph.normal("patches.weight", (size.hidden, 3, PATCH, PATCH), float(np.sqrt(1 / (3 * PATCH**2))))
    bias = graph.normal("patches.bias", (size.hidden,), 0.1)
    x = graph.node("Conv", ["image", weight, bias], "patches", kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
    graph.constant("flat", np.array([batch, size.hidden, size.tokens - 1], np.int64))
    x = graph.node("Reshape", [x, "flat"], "patches.flat")
    x = graph.node("Transpose", [x], "patches.tokens", perm=[0, 2, 1])
    one_class = graph.rng.standard_normal((1, 1, size.hidden)).astype(np.float32)
    token = graph.constant("class", np.repeat(one_class, batch, axis=0))
    x = graph.node("Concat", [token, x], "tokens", axis=1)
    x = graph.node("Add", [x, graph.normal("positions", (1, size.tokens, size.hidden), 0.5)], "embeddings")
    _layer_constants(graph, size, batch)
    for layer in range(size.layers):
        x = _vit_layer(graph, x, f"layer{layer}")
    x = graph.layer_norm(x, "norm", size.hidden)
    x = graph.node("Gather", [x, graph.constant("first", np.array(0, np.int64))], "norm.class", axis=1)
    x = graph.node("Gemm", [x, *_classifier(graph, size.hidden)], "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, IMAGE, IMAGE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    return graph.model("vit_tiny", [image], [logits])


def _classifier(graph: Graph, inputs: int) -> tuple[str, str]:
    weight = graph.normal("classifier.weight", (CLASSES, inputs), float(np.sqrt(1 / inputs)))
    return weight, graph.normal("classifier.bias", (CLASSES,), 0.1)


def _layer_constants(graph: Graph, size: Encoder, batch: int) -> None:
    """What every layer reads."""
    width = size.hidden // size.heads
    graph.constant("split", np.array([batch, size.tokens, size.heads, width], np.int64))
    graph.constant("join", np.array([batch, size.tokens, size.hidden], np.int64))
    graph.constant("root", np.array(np.sqrt(width), np.float32))
    graph.constant("one", np.array(1, np.float32))
    graph.constant("half", np.array(0.5, np.float32))
    graph.constant("root2", np.array(np.sqrt(2), np.float32))


def _bert_layer(graph: Graph, x: str, name: str, output: str) -> str:
    """Attention and a feed-forward block, each added to what it read, the sum normalised."""
    y = _attention(graph, x, name, BERT4)
    x = graph.node("Add", [y, x], f"{name}.attended")
    x = graph.layer_norm(x, f"{name}.attended.norm", BERT4.hidden)
    y = _feed_forward(graph, x, name, BERT4)
    x = graph.node("Add", [y, x], f"{name}.sum")
    return graph.layer_norm(x, output, BERT4.hidden)


def _vit_layer(graph: Graph, x: str, name: str) -> str:
    """Attention and a feed-forward block, each of what it is added to, normalised."""
    y = graph.layer_norm(x, f"{name}.norm", VIT_TINY.hidden)
    y = _attention(graph, y, name, VIT_TINY)
    x = graph.node("Add", [y, x], f"{name}.attended")
    y = graph.layer_norm(x, f"{name}.attended.norm", VIT_TINY.hidden)
    y = _feed_forward(graph, y, name, VIT_TINY)
    return graph.node("Add", [y, x], f"{name}.output")


def _attention(graph: Graph, x: str, name: str, size: Encoder) -> str:
    """Multi-head self-attention with its projection."""
    heads = {}
    for part, permutation in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        y = graph.dense(x, f"{name}.{part}", size.hidden, size.hidden)
        y = graph.node("Reshape", [y, "split"], f"{name}.{part}.split")
        heads[part] = graph.node("Transpose", [y], f"{name}.{part}.heads", perm=permutation)
    y = graph.node("MatMul", [heads["query"], heads["key"]], f"{name}.scores")
    y = graph.node("Div", [y, "root"], f"{name}.scaled")
    y = graph.node("Softmax", [y], f"{name}.attention", axis=-1)
    y = graph.node("MatMul", [y, heads["value"]], f"{name}.mixed")
    y = graph.node("Transpose", [y], f"{name}.mixed.heads", perm=[0, 2, 1, 3])
    y = graph.node("Reshape", [y, "join"], f"{name}.mixed.join")
    return graph.dense(y, f"{name}.projection", size.hidden, size.hidden)


def _feed_forward(graph: Graph, x: str, name: str, size: Encoder) -> str:
    """Two dense layers with GELU between them, as op-set 17 spells it: x / 2 · (1 + erf(x / √2))."""
    y = graph.dense(x, f"{name}.expand", size.hidden, size.feed_forward)
    gate = graph.node("Div", [y, "root2"], f"{name}.gelu.scaled")
    gate = graph.node("Erf", [gate], f"{name}.gelu.erf")
    gate = graph.node("Add", [gate, "one"], f"{name}.gelu.gate")
    y = graph.node("Mul", [y, gate], f"{name}.gelu.gated")
    y = graph.node("Mul", [y, "half"], f"{name}.gelu")
    return graph.dense(y, f"{name}.contract", size.feed_forward, size.hidden)
