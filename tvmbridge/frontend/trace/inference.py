"""Asks ONNX for the types of one node's results, from what is known of its operands."""

from __future__ import annotations

import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper

from tvmbridge.errors import ModelError, reason
from tvmbridge.frontend.operator import Missing, Tensor, TensorSequence, Value, numpy_type

_OF_OPTIONALS = frozenset({"OptionalHasElement", "OptionalGetElement"})  # a value is no optional any more while tracing
_KNOWN_ELEMENTS = 4096  # values larger than this decide no shape


def value_type(value: Value) -> onnx.TypeProto:
    """The ONNX type of a value."""
    if isinstance(value, Tensor):
        return helper.make_tensor_type_proto(_number(value.dtype), value.shape)
    if isinstance(value, TensorSequence):
        element = helper.make_tensor_type_proto(_number(value.dtype), None)
        return helper.make_sequence_type_proto(element)
    return helper.make_optional_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))


def _number(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(numpy_type(dtype)))


def infer_results(
    schema: onnx.defs.OpSchema,
    node: onnx.NodeProto,
    operands: tuple[Value | None, ...],
    scope: dict[str, Value],
    opsets: dict[str, int],
) -> tuple[onnx.TypeProto | None, ...]:
    """One type for each output of the node, None where ONNX does not know it. ModelError where they contradict."""
    if node.op_type in _OF_OPTIONALS:
        return (None,) * len(node.output)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name, value in zip(node.input, operands, strict=True):
        if value is None or isinstance(value, Missing):
            continue
        if node.op_type == "Range" and isinstance(value, Tensor) and value.array is not None and value.array.size == 1:
            value = Tensor.known(value.array.reshape(()))  # ONNX Runtime takes vectors of one number, too
        types[name] = value_type(value)
        if isinstance(value, Tensor) and value.array is not None and value.array.size <= _KNOWN_ELEMENTS:
            data[name] = numpy_helper.from_array(value.array, name)
    if any(entry.HasField("g") for entry in node.attribute):
        for name, value in scope.items():
            if not isinstance(value, Missing):
                types.setdefault(name, value_type(value))
    if any(name and name not in types for name in node.input):
        return (None,) * len(node.output)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception as exc:  # C++: whatever contradicts the schema
        if any(entry.HasField("g") for entry in node.attribute):
            return (None,) * len(node.output)  # an optional with a value is the value here; the body says the rest
        raise ModelError(
            f"{node.op_type}: its operands do not fit together: {reason(exc)}",
            hint="check the shapes that were bound; if they are right, export the model again",
        ) from exc
    return tuple(found.get(name) if name else None for name in node.output)
