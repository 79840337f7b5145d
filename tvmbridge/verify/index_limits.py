"""Finds which inputs of a model are indices, and into how many elements: an index out of range is a wild read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference

from tvmbridge.errors import ModelFileError, reason
from tvmbridge.signature import ModelSignature

_KEEPS_VALUES = frozenset(
    {
        *("Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Identity", "Max", "Min", "Pad", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
_Shapes = dict[str, tuple[int, ...]]


def index_limits(source: str | os.PathLike[str] | onnx.ModelProto, signature: ModelSignature) -> dict[str, int]:
    """Input name → number of elements it may index (the smallest, where it indexes several); absent: no index.

    Inputs are followed through operators that move values without changing them. What cannot be followed is no index.
    """
    graph = _graph(source, signature)
    shapes = _shapes(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    found = {spec.name: _smallest_limit(spec.name, readers, shapes, graph) for spec in signature.inputs}
    return {name: limit for name, limit in found.items() if limit is not None}


def _smallest_limit(
    start: str, readers: dict[str, list[onnx.NodeProto]], shapes: _Shapes, graph: onnx.GraphProto
) -> int | None:
    limits: list[int] = []
    seen, pending = {start}, [start]
    while pending:
        name = pending.pop()
        for node in readers.get(name, []):
            limits += [limit for limit in _limits(node, name, shapes, graph) if limit is not None]
            moves = node.op_type in _KEEPS_VALUES or (node.op_type == "Gather" and node.input[0] == name)
            fresh = [made for made in node.output if made and made not in seen] if moves else []
            seen.update(fresh)
            pending += fresh
    return min(limits, default=None)


def _limits(node: onnx.NodeProto, name: str, shapes: _Shapes, graph: onnx.GraphProto) -> list[int | None]:
    rule = _INDEXING.get(node.op_type)
    return [] if rule is None else rule(node, name, shapes, graph)


def _along_axis(
    node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto, default_axis: int = 0
) -> list[int | None]:
    shape = shapes.get(node.input[0])
    if node.input[1] != name or not shape:
        return []
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), default_axis)
    return [shape[axis]] if -len(shape) <= axis < len(shape) else []


def _along_leading_axes(node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto) -> list[int | None]:
    data, indices = shapes.get(node.input[0]), shapes.get(node.input[1])
    if node.input[1] != name or not data or not indices:
        return []
    first = next((entry.i for entry in node.attribute if entry.name == "batch_dims"), 0)
    return [min(data[first : first + indices[-1]], default=None)]


def _one_hot(node: onnx.NodeProto, name: str, _: _Shapes, graph: onnx.GraphProto) -> list[int | None]:
    if node.input[0] != name:
        return []
    depth = next((tensor for tensor in graph.initializer if tensor.name == node.input[1]), None)
    if depth is None or depth.data_location == onnx.TensorProto.EXTERNAL:
        return []
    return [int(onnx.numpy_helper.to_array(depth).reshape(-1)[0])]


def _embedding(node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto) -> list[int | None]:
    tables = {0: 2, 1: 4, 8: 3}  # com.microsoft.EmbedLayerNormalization: word, segment and position ids
    read = [(node.input[table]) for ids, table in tables.items() if len(node.input) > ids and node.input[ids] == name]
    return [shapes[table][0] for table in read if shapes.get(table)]


_INDEXING: dict[str, Callable[[onnx.NodeProto, str, _Shapes, onnx.GraphProto], list[int | None]]] = {
    "EmbedLayerNormalization": _embedding,
    "Gather": _along_axis,
    "GatherElements": _along_axis,
    "GatherND": _along_leading_axes,
    "OneHot": _one_hot,
    "Scatter": _along_axis,
    "ScatterElements": _along_axis,
    "ScatterND": _along_leading_axes,
}


def _graph(source: str | os.PathLike[str] | onnx.ModelProto, signature: ModelSignature) -> onnx.GraphProto:
    """The model's graph with functions expanded and the signature's shapes, without its weights' data."""
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
    else:
        try:
            model = onnx.ModelProto.FromString(Path(source).read_bytes())
        except Exception as exc:  # OSError, or protobuf's own DecodeError
            raise ModelFileError(f"{source} is no readable ONNX model: {reason(exc)}") from exc
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 4096:
            tensor.ClearField("raw_data")
    bound = {spec.name: spec.shape for spec in signature.inputs}
    for entry in model.graph.input:
        if entry.name in bound:
            entry.type.tensor_type.ClearField("shape")
            entry.type.tensor_type.shape.SetInParent()
            for size in bound[entry.name]:
                entry.type.tensor_type.shape.dim.add().dim_value = size or 0
    del model.graph.value_info[:]
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model, True)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # C++: shapes that cannot be inferred leave fewer limits, and the import has its own errors
        return model.graph
    return model.graph


def _shapes(graph: onnx.GraphProto) -> _Shapes:
    shapes: _Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.name == "value":
                shapes[node.output[0]] = tuple(entry.t.dims)
    for value in (*graph.input, *graph.value_info):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes.setdefault(value.name, tuple(axis.dim_value for axis in axes))
    return shapes
