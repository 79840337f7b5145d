"""Visits a model's graphs: the main one and the bodies inside its nodes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

STANDARD_DOMAINS = ("", "ai.onnx")


def nested_graphs(nodes: Iterator[onnx.NodeProto] | list[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Every graph inside the attributes of `nodes` (branches of If, bodies of Loop), outermost first."""
    for node in nodes:
        for attribute in node.attribute:
            bodies = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for body in bodies:
                yield body
                yield from nested_graphs(body.node)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph inside it."""
    yield model.graph
    yield from nested_graphs(model.graph.node)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the main graph and of every graph inside it."""
    for graph in graphs(model):
        yield from graph.node


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model: initializers and attributes, those of local functions too."""
    bodies = [*graphs(model)]
    for function in model.functions:
        bodies.extend(nested_graphs(function.node))
        yield from _attribute_tensors(function.node)
    for graph in bodies:
        yield from graph.initializer
        yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterator[onnx.NodeProto] | list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def label(node: onnx.NodeProto) -> str:
    """What to call a node in a message: its name, else the first value it makes."""
    if node.name:
        return node.name
    made = next((name for name in node.output if name), None)
    return f"the node that makes {made!r}" if made else "a node without name and outputs"


def opset(model: onnx.ModelProto, domain: str = "") -> int | None:
    """Version of the op-set of `domain` that the model imports; None where it imports none."""
    names = STANDARD_DOMAINS if domain in STANDARD_DOMAINS else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in names), None)
