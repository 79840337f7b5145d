"""Finds which inputs of a model are indices, and into how many elements: an index out of range is a wild read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

_MOVES_ALL = frozenset(
    {
        *("Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "SpaceToDepth", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)
_MOVES_SOME = frozenset({"Max", "Min", "Pad", "Slice", "Split", "Where"})
_WIDE = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64})
_Shapes = dict[str, tuple[int, ...]]


def find_index_limits(graph: onnx.GraphProto, names: Iterable[str], *, certain: bool) -> dict[str, int]:
    """Input name → number of elements it indexes (the smallest, where it indexes several); absent: no index.

    graph: with inferred shapes. Inputs are followed through operators that move values without changing them; what
    cannot be followed is no index. certain: only limits that every element of the input must keep, from -limit to
    limit - 1, for the model to be defined; else also those of indices that the model may clamp, mask or cut off.
    """
    shapes = _shapes(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    found = {name: _smallest_limit(name, readers, shapes, graph, certain) for name in names}
    return {name: limit for name, limit in found.items() if limit}


def _smallest_limit(
    start: str, readers: dict[str, list[onnx.NodeProto]], shapes: _Shapes, graph: onnx.GraphProto, certain: bool
) -> int | None:
    limits: list[int] = []
    seen, pending = {start}, [start]
    while pending:
        name = pending.pop()
        for node in readers.get(name, []):
            read = _limits(node, name, shapes, graph)
            if not certain or (len(set(read)) == 1 and node.op_type != "OneHot"):  # OneHot takes any index
                limits += read
            moves = _moves_all(node, name) if certain else _moves_some(node, name)
            fresh = [made for made in node.output if made and made not in seen] if moves else []
            seen.update(fresh)
            pending += fresh
    return min(limits, default=None)


def _moves_all(node: onnx.NodeProto, name: str) -> bool:
    """Whether every element of `name` is among the node's results, unchanged."""
    if node.op_type == "Cast" and not any(entry.name == "to" and entry.i in _WIDE for entry in node.attribute):
        return False
    return node.op_type in _MOVES_ALL and (node.input[0] == name or node.op_type == "Concat")


def _moves_some(node: onnx.NodeProto, name: str) -> bool:
    kinds = _MOVES_ALL | _MOVES_SOME
    return node.op_type in kinds or (node.op_type == "Gather" and node.input[0] == name)


def _limits(node: onnx.NodeProto, name: str, shapes: _Shapes, graph: onnx.GraphProto) -> list[int]:
    """How many elements each component of the index `name` may count, where `node` indexes with it; else nothing."""
    rule = _INDEXING.get(node.op_type)
    return [] if rule is None else rule(node, name, shapes, graph)


def _along_axis(
    node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto, default_axis: int = 0
) -> list[int]:
    shape = shapes.get(node.input[0])
    if node.input[1] != name or not shape:
        return []
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), default_axis)
    return [shape[axis]] if -len(shape) <= axis < len(shape) else []


def _along_leading_axes(node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto) -> list[int]:
    data, indices = shapes.get(node.input[0]), shapes.get(node.input[1])
    if node.input[1] != name or not data or not indices:
        return []
    first = next((entry.i for entry in node.attribute if entry.name == "batch_dims"), 0)
    return list(data[first : first + indices[-1]])


def _one_hot(node: onnx.NodeProto, name: str, _: _Shapes, graph: onnx.GraphProto) -> list[int]:
    if node.input[0] != name:
        return []
    depth = next((tensor for tensor in graph.initializer if tensor.name == node.input[1]), None)
    if depth is None or depth.data_location == onnx.TensorProto.EXTERNAL:
        return []
    return [int(onnx.numpy_helper.to_array(depth).reshape(-1)[0])]


def _embedding(node: onnx.NodeProto, name: str, shapes: _Shapes, _: onnx.GraphProto) -> list[int]:
    tables = {0: 2, 1: 4, 8: 3}  # com.microsoft.EmbedLayerNormalization: word, segment and position ids
    read = [(node.input[table]) for ids, table in tables.items() if len(node.input) > ids and node.input[ids] == name]
    return [shapes[table][0] for table in read if shapes.get(table)]


_INDEXING: dict[str, Callable[[onnx.NodeProto, str, _Shapes, onnx.GraphProto], list[int]]] = {
    "EmbedLayerNormalization": _embedding,
    "Gather": _along_axis,
    "GatherElements": _along_axis,
    "GatherND": _along_leading_axes,
    "OneHot": _one_hot,
    "Scatter": _along_axis,
    "ScatterElements": _along_axis,
    "ScatterND": _along_leading_axes,
}


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
