"""Refuses models that ask for absurd amounts of memory or operators, before anything is spent on them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx

from tvmbridge.errors import ModelError
from tvmbridge.frontend.walk import label

MAX_TENSOR_BYTES = 2**36  # 64 GiB
MAX_NODES = 1_000_000
MAX_CONSTANT_BYTES = 2**28  # that the optimizer may compute, and mostly throws away
_LONG_VECTOR = 2**20  # elements; onnx keeps about a hundred bytes for each when it follows their values


def check_sizes(model: onnx.ModelProto) -> None:
    """Before: shapes are inferred. Raises ModelError where a tensor is larger than any that could be computed with."""
    for entry in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shape, size_bytes = _shape(entry), _size_bytes(entry)
        if size_bytes > MAX_TENSOR_BYTES:
            maker = next((node for node in model.graph.node if entry.name in node.output), None)
            made = f", made by {maker.op_type} {label(maker)!r}," if maker is not None else ""
            raise ModelError(
                f"tensor {entry.name!r}{made} would take {size_bytes / 2**30:.3g} GiB: its shape is {shape}",
                hint="check the shapes that were bound; if they are right, the model is damaged: export it again",
            )


def follows_values(model: onnx.ModelProto) -> bool:
    """Whether onnx can follow the values of the model's vectors: memory that grows with their length."""
    return all(
        len(_shape(entry)) != 1 or _elements(entry) <= _LONG_VECTOR
        for entry in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    )


# Operators whose result may be larger than its operands by any factor.
GROWING = frozenset(
    {
        *("AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "DFT", "Expand", "EyeLike"),
        *("HammingWindow", "HannWindow", "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "STFT"),
        *("Tile", "Upsample"),
    }
)


def makes_large_constants(model: onnx.ModelProto) -> bool:
    """Whether what follows from constants alone is large anywhere, or may be. Before: shapes are inferred."""
    return _grows(model.graph, frozenset())


def _grows(graph: onnx.GraphProto, around: frozenset[str]) -> bool:
    known = {*around, *(tensor.name for tensor in graph.initializer)}
    entries = {entry.name: entry for entry in (*graph.value_info, *graph.output)}
    for node in graph.node:
        bodies = [
            body for entry in node.attribute for body in (*entry.graphs, *([entry.g] if entry.HasField("g") else []))
        ]
        if any(_grows(body, frozenset(known)) for body in bodies):
            return True
        if bodies or any(name and name not in known for name in node.input):
            continue
        known.update(node.output)
        for name in node.output:
            if name not in entries or not _is_static(entries[name]):
                if node.op_type in GROWING:
                    return True
            elif _size_bytes(entries[name]) > MAX_CONSTANT_BYTES:
                return True
    return False


def check_expansion(model: onnx.ModelProto, name: str) -> None:
    """Raise ModelError where the model's functions, each written out where it is called, are too many operators.

    Before: functions do not call themselves, as onnx's checker makes sure.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            bodies = [body for entry in node.attribute for body in (*entry.graphs, entry.g)]
            key = (node.domain, node.op_type)
            if key in functions and key not in counted:
                counted[key] = count(functions[key].node)
            total += counted.get(key, 1) + sum(count(body.node) for body in bodies)
        return total

    operators = count(model.graph.node)
    if operators > MAX_NODES:
        raise ModelError(
            f"{name}: the model is {operators:.3g} operators, once its functions are written out",
            hint=f"at most {MAX_NODES:,} are taken: export it again",
        )


def _shape(entry: onnx.ValueInfoProto) -> list[int]:
    return [axis.dim_value for axis in entry.type.tensor_type.shape.dim]


def _elements(entry: onnx.ValueInfoProto) -> int:
    """0 where an axis is not known."""
    return math.prod(_shape(entry))


def _is_static(entry: onnx.ValueInfoProto) -> bool:
    tensor = entry.type.tensor_type
    return tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim)


def _size_bytes(entry: onnx.ValueInfoProto) -> int:
    return _elements(entry) * _element_bytes(entry.type.tensor_type.elem_type)


def _element_bytes(dtype: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)
    except (KeyError, TypeError, ValueError):
        return 1
