"""Brings models of old op-sets to op-set 13, from which on TVM's converters follow ONNX closely."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx.shape_inference
import onnx.version_converter

from tvmbridge.errors import UnsupportedOperatorError, reason
from tvmbridge.frontend.attribute_limits import check_attributes
from tvmbridge.frontend.operator import OLD_ROUNDING
from tvmbridge.frontend.operators import describe, tvm_version
from tvmbridge.frontend.walk import STANDARD_DOMAINS, graphs, nodes, opset

_OLDEST_OPSET = 13
_NEW_FORMS = 11  # of Resize and Pad
_logger = logging.getLogger(__name__)


def upgrade_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: any op-set. After: op-set 13 or newer, or an older one where onnx cannot convert but TVM can read it.

    Raises UnsupportedOperatorError with the operators that have to change and that neither onnx nor TVM takes.
    """
    version = opset(model)
    if version is None or version >= _OLDEST_OPSET:
        return model
    check_attributes(nodes(model))  # the converter infers shapes
    names = _interface(model)
    try:
        upgraded = onnx.version_converter.convert_version(model, _OLDEST_OPSET)
    except Exception as exc:  # C++: no adapter for an operator, or an assertion inside one
        changed = [node for node in nodes(model) if _reads_differently(node, version)]
        if changed:
            raise UnsupportedOperatorError(
                f"op-set {version} cannot be upgraded to {_OLDEST_OPSET}: {reason(exc)}",
                operators=describe(changed, model),
                hint=f"export the model with op-set {_OLDEST_OPSET} or newer",
            ) from exc
        _logger.info("op-set %d kept: %s", version, reason(exc))
        return model
    if names != _interface(upgraded):
        return model
    if version < _NEW_FORMS:
        _keep_resizes(upgraded)
        _settle_constants(upgraded)
    for graph in graphs(upgraded):
        _flatten_hardmax(graph)
    return upgraded


def _keep_resizes(upgraded: onnx.ModelProto) -> None:
    """Say where samples lay and how they were rounded before op-set 11: onnx leaves the new defaults in force."""
    for node in nodes(upgraded):
        if node.op_type == "Resize" and node.domain in STANDARD_DOMAINS:
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", OLD_ROUNDING)):
                node.attribute.append(onnx.helper.make_attribute(name, value))


def _settle_constants(upgraded: onnx.ModelProto) -> None:
    """Give what Pad fills with, and the limits of Clip, the type of the data: onnx writes them down in float32.

    Of a Pad whose mode fills with no constant, onnx also leaves the attribute in place.
    """
    inferred = onnx.shape_inference.infer_shapes(upgraded)
    types = {tensor.name: tensor.data_type for graph in graphs(inferred) for tensor in graph.initializer}
    for graph in graphs(inferred):
        types.update({e.name: e.type.tensor_type.elem_type for e in (*graph.input, *graph.output, *graph.value_info)})
    for graph in graphs(upgraded):
        constants = {node.output[0]: node.attribute[0] for node in graph.node if node.op_type == "Constant"}
        for node in graph.node:
            if node.op_type == "Pad":
                kept = [entry for entry in node.attribute if entry.name != "value"]
                del node.attribute[:]
                node.attribute.extend(kept)
            if node.op_type in ("Clip", "Pad"):
                for name in node.input[1 if node.op_type == "Clip" else 2 :]:
                    if name in constants and types.get(node.input[0], 0):
                        _retype(constants[name].t, types[node.input[0]])


def _retype(tensor: onnx.TensorProto, number: int) -> None:
    if tensor.data_type != number:
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # a limit beyond the type's range is none
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(onnx.helper.tensor_dtype_to_np_dtype(number))))


def _flatten_hardmax(graph: onnx.GraphProto) -> None:
    """Say in op-set 13 what a Hardmax meant before: all axes from `axis` on are one. onnx copies the node as it is."""
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Hardmax" or node.domain not in STANDARD_DOMAINS:
            written.append(node)
            continue
        (x,), (y,) = node.input, node.output
        flat, hot, shape = (f"{y}__{part}" for part in ("flat", "hot", "shape"))
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
        written += [
            onnx.helper.make_node("Flatten", [x], [flat], axis=axis),
            onnx.helper.make_node("Hardmax", [flat], [hot], node.name, axis=1),
            onnx.helper.make_node("Shape", [x], [shape]),
            onnx.helper.make_node("Reshape", [hot, shape], [y]),
        ]
    if len(written) > len(graph.node):
        del graph.node[:]
        graph.node.extend(written)


def _interface(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Names of inputs and outputs, and the inputs' types: of a Scan the converter drops the batch of both."""
    inputs = [(entry.name, str(entry.type)) for entry in model.graph.input]
    return inputs + [(entry.name, "") for entry in model.graph.output]


def _reads_differently(node: onnx.NodeProto, version: int) -> bool:
    """Whether TVM would read this node by the rules of a newer version that are not a superset of its own."""
    reads_as = tvm_version(node.op_type, version)
    if node.domain not in STANDARD_DOMAINS or reads_as is None or reads_as <= version:
        return False
    try:
        old = onnx.defs.get_schema(node.op_type, version, "")
        new = onnx.defs.get_schema(node.op_type, reads_as, "")
    except onnx.defs.SchemaError:
        return True
    inputs = [entry.name for entry in old.inputs]
    if inputs != [entry.name for entry in new.inputs][: len(inputs)]:
        return True
    return any(
        name not in new.attributes
        or attribute.default_value.SerializeToString() != new.attributes[name].default_value.SerializeToString()
        for name, attribute in old.attributes.items()
    )
