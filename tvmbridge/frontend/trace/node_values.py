"""What a node says by itself: the names that it reads, its attributes as Python values, a Constant's value."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.frontend.operator import Operator, Tensor, element_type
from tvmbridge.frontend.sparse_weights import dense


def collect_reads(nodes: Iterable[onnx.NodeProto], found: set[str]) -> None:
    """Add to `found` the names of all values that nodes read, and graphs in their attributes."""
    for node in nodes:
        found.update(node.input)
        found.update(reads_of_graphs(node))


def reads_of_graphs(node: onnx.NodeProto) -> set[str]:
    """What the graphs among a node's attributes read, and give."""
    found: set[str] = set()
    for entry in node.attribute:
        for body in [*entry.graphs, *([entry.g] if entry.HasField("g") else [])]:
            found.update(result.name for result in body.output)
            collect_reads(body.node, found)
    return found


def read_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's value; refuses types that nothing computes with."""
    element_type(tensor.data_type)
    return numpy_helper.to_array(tensor)


def read_attribute(entry: onnx.AttributeProto) -> object:
    """An attribute as a Python value: text as str, tensors as arrays, graphs as they are, lists as tuples."""
    value = helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return value if value.data_type == onnx.TensorProto.STRING else numpy_helper.to_array(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return tuple(text.decode(errors="replace") for text in value)
    return tuple(value) if isinstance(value, list) or type(value).__name__.startswith("Repeated") else value


def default_attribute(name: str, op: Operator) -> onnx.AttributeProto:
    """A default of the operator's schema, as the body's attribute."""
    return onnx.defs.get_schema(op.op_type, op.opset, op.domain).attributes[name].default_value


_NUMBERS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


def read_constant(op: Operator) -> Tensor:
    """The value of a Constant node, by whichever attribute it has it."""
    for name, value in op.attributes.items():
        if name == "value":
            return Tensor.known(read_array(next(entry.t for entry in op.node.attribute if entry.name == "value")))
        if name in _NUMBERS:
            return Tensor.known(np.array(value, _NUMBERS[name]))
        if name == "sparse_value" and isinstance(value, onnx.SparseTensorProto):
            element_type(value.values.data_type)
            return Tensor.known(dense(value))
    op.refuse("a constant of strings")
