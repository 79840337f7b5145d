"""Cuts parts out of an ONNX graph: models of some of its nodes, whose inputs have the values they had in the whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from tvmbridge.errors import ModelError
from tvmbridge.frontend.functions import inline_functions
from tvmbridge.frontend.input_defaults import drop_input_defaults
from tvmbridge.frontend.input_values import bind_values
from tvmbridge.frontend.read import read_model
from tvmbridge.frontend.shapes import bind_shapes
from tvmbridge.frontend.sparse_weights import densify
from tvmbridge.frontend.weights import attach_weights, detach_weights
from tvmbridge.signature import TensorSpec

Lookup = Callable[[str], np.ndarray | None]

_SHAPES_ONLY = ("Shape", "Size")  # their results are known although their inputs are not
_DRAWN = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model with static shapes and without functions of its own.

    nodes: those that its outputs depend on, in topological order.
    outputs: those that a node makes.
    initializers: by name. known: names of values that follow from weights and shapes alone.
    """

    model: onnx.ModelProto = dataclasses.field(repr=False)
    nodes: tuple[onnx.NodeProto, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, onnx.TensorProto] = dataclasses.field(repr=False)
    known: frozenset[str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return tuple(_spec(entry) for entry in self.model.graph.input)


@dataclasses.dataclass(frozen=True)
class Part:
    """A model of some nodes of a graph. feeds: its inputs' values."""

    model: onnx.ModelProto = dataclasses.field(repr=False)
    feeds: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    nodes: tuple[onnx.NodeProto, ...] = ()


def read_graph(
    source: str | os.PathLike[str] | onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]],
    dims: Mapping[str, int],
    values: Mapping[str, ArrayLike],
) -> Graph:
    """Read a model as `import_onnx` does, up to the point where its operators are looked at."""
    model = densify(drop_input_defaults(read_model(source).proto))
    model = bind_shapes(bind_values(model, values), shapes, dims)
    weights = detach_weights(model)
    model = attach_weights(inline_functions(model), weights)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name for node in model.graph.node for name in node.output if name}
    outputs = tuple(entry.name for entry in model.graph.output if entry.name in made)
    nodes = needed(model.graph.node, outputs)
    if not nodes:
        raise ModelError("no output of the model is computed: there is nothing to search")
    known: set[str] = set()
    for node in nodes:
        bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if bodies or node.op_type in _DRAWN:
            continue
        if node.op_type in _SHAPES_ONLY or all(name in known or name in initializers for name in reads(node)):
            known.update(filter(None, node.output))
    return Graph(model, nodes, outputs, initializers, frozenset(known))


def reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """What a node reads, also inside its branches and bodies, each once."""
    return tuple(dict.fromkeys([*filter(None, node.input), *_captured(node)]))


def needed(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> tuple[onnx.NodeProto, ...]:
    """Those of the nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            kept.append(node)
            wanted.update(reads(node))
    return tuple(reversed(kept))


def missing(graph: Graph, nodes: Sequence[onnx.NodeProto], lookup: Lookup) -> tuple[str, ...]:
    """What the nodes read that none of them makes, and that has no value of its own: such a part cannot be cut out."""
    made = {name for node in nodes for name in node.output}
    names = dict.fromkeys(name for node in nodes for name in reads(node))
    return tuple(n for n in names if n not in made and n not in graph.initializers and lookup(n) is None)


def cut(graph: Graph, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, np.ndarray], lookup: Lookup) -> Part:
    """A model of `nodes` that gives `outputs`, which are values of the right shape and dtype.

    lookup: the values of whatever the nodes read that none of them makes and that is no weight; none may be `missing`.
    What is known without the graph's inputs becomes a weight, as it is one to the compiler.
    """
    made = {name for node in nodes for name in node.output}
    names = dict.fromkeys(name for node in nodes for name in reads(node) if name not in made)
    weights, feeds = [], {}
    for name in names:
        if name in graph.initializers:
            weights.append(graph.initializers[name])
            continue
        value = lookup(name)
        assert value is not None, name
        if name in graph.known:
            weights.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        else:
            feeds[name] = value
    body = helper.make_graph(
        nodes,
        graph.model.graph.name or "part",
        [_entry(name, value) for name, value in feeds.items()],
        [_entry(name, value) for name, value in outputs.items()],
        weights,
    )
    model = helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    return Part(model, feeds, tuple(nodes))


def _entry(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _spec(entry: onnx.ValueInfoProto) -> TensorSpec:
    tensor = entry.type.tensor_type
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"input {entry.name!r} has no element type") from exc
    return TensorSpec(entry.name, tuple(axis.dim_value for axis in tensor.shape.dim), dtype)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """What the graphs inside a node read from around it."""
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {entry.name for entry in (*body.input, *body.initializer)}
            own.update(name for inner in body.node for name in inner.output)
            read = [name for inner in body.node for name in reads(inner)]
            yield from (name for name in [*read, *(entry.name for entry in body.output)] if name not in own)
