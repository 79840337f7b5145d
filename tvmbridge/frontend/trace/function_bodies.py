"""The nodes that ONNX defines an operator by, where its schema has a function body."""

from __future__ import annotations

import onnx

from tvmbridge.frontend.operator import Operator
from tvmbridge.frontend.trace.inference import value_type


def find_body(op: Operator) -> onnx.FunctionProto | None:
    """The function body of an operator, of the newest form that its op-set allows; None where it has none."""
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
