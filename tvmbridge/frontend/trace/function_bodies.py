"""The nodes that an operator stands for: ONNX Runtime's own by ours, others where their schema has a function body."""

from __future__ import annotations

import onnx

from tvmbridge.frontend.contrib import find_contrib
from tvmbridge.frontend.operator import Operator
from tvmbridge.frontend.trace.inference import value_type


def find_body(op: Operator) -> onnx.FunctionProto | None:
    """The function body of an operator, of the newest form that its op-set allows; None where it has none."""
    contrib = find_contrib(op)
    if contrib is not None or not onnx.defs.has(op.op_type, op.opset, op.domain):
        return contrib
    schema = onnx.defs.get_schema(op.op_type, op.opset, op.domain)
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= op.opset]
        types = [value_type(value).SerializeToString() if value is not None else b"" for value in op.operands]
        if versions:
            body = schema.get_context_dependent_function_with_opset_version(
                max(versions), op.node.SerializeToString(), types
            )
            return onnx.FunctionProto.FromString(body) if body else None
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= op.opset]
        if versions:
            return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(max(versions)))
    return None


def bind_attributes(node: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with the attributes that refer to the function's replaced by those; absent ones disappear."""
    if not any(entry.ref_attr_name or entry.HasField("g") or entry.graphs for entry in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for entry in node.attribute:
        if entry.ref_attr_name:
            given = attributes.get(entry.ref_attr_name)
            if given is not None:
                copied = bound.attribute.add()
                copied.CopyFrom(given)
                copied.name = entry.name
            continue
        copied = bound.attribute.add()
        copied.CopyFrom(entry)
        for graph in [*copied.graphs, *([copied.g] if copied.HasField("g") else [])]:
            inner = [bind_attributes(part, attributes) for part in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    return bound


def without_absent(node: onnx.NodeProto, absent: set[str]) -> onnx.NodeProto:
    """The node with the inputs that the function was not given left out."""
    if absent.isdisjoint(node.input):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.input[:]
    bound.input.extend("" if name in absent else name for name in node.input)
    return bound
