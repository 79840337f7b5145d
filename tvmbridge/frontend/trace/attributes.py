"""What a node's attributes hold, as Python values; and Constant, which is one of its attributes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.frontend.operator import Operator, Tensor, element_type
from tvmbridge.frontend.sparse_weights import dense

_NUMBERS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """A stored tensor; ModelError where it holds no numbers."""
    element_type(tensor.data_type)
    return numpy_helper.to_array(tensor)


def attribute_value(entry: onnx.AttributeProto) -> object:
    """Text as str, lists as tuples, tensors of numbers as arrays, all else as ONNX has it."""
    value = helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return value if value.data_type == onnx.TensorProto.STRING else numpy_helper.to_array(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return tuple(text.decode(errors="replace") for text in value)
    return tuple(value) if isinstance(value, list) or type(value).__name__.startswith("Repeated") else value


def constant(op: Operator) -> Tensor:
    """The value of Constant."""
    for name, value in op.attributes.items():
        if name == "value":
            return Tensor.known(array(next(entry.t for entry in op.node.attribute if entry.name == "value")))
        if name in _NUMBERS:
            return Tensor.known(np.array(value, _NUMBERS[name]))
        if name == "sparse_value" and isinstance(value, onnx.SparseTensorProto):
            element_type(value.values.data_type)
            return Tensor.known(dense(value))
    op.refuse("a constant of strings")
