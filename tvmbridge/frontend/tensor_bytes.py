"""Says how many bytes a stored tensor takes, and refuses tensors that hold another number."""

from __future__ import annotations

import math

import onnx

from tvmbridge.errors import ModelFileError
from tvmbridge.frontend.walk import tensors

_BITS = {
    onnx.TensorProto.UINT2: 2,
    onnx.TensorProto.INT2: 2,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
}


_VALUES_IN_ONE = {2: 4, 4: 2}  # elements of so many bits that one value of the typed fields holds
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def tensor_size_bytes(tensor: onnx.TensorProto, source: str) -> int:
    """Bytes that the elements of `tensor` take when stored raw; ModelFileError where its shape or type is no such."""
    if any(axis < 0 for axis in tensor.dims):
        raise ModelFileError(f"{source}: tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}")
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        try:
            bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except (KeyError, TypeError, ValueError) as exc:
            raise ModelFileError(f"{source}: tensor {tensor.name!r} has the unknown type {tensor.data_type}") from exc
    return (math.prod(tensor.dims) * bits + 7) // 8


def check_tensor_bytes(model: onnx.ModelProto, source: str) -> None:
    """Refuse a model with a tensor whose bytes, or values, do not match its shape and type."""
    for tensor in tensors(model):
        if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            continue
        expected, unit = tensor_size_bytes(tensor, source), "bytes"
        if tensor.HasField("raw_data"):
            held = len(tensor.raw_data)
        else:
            expected, unit = _values(tensor), "values"
            held = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
        if held != expected:
            raise ModelFileError(
                f"{source}: tensor {tensor.name!r} holds {held} {unit} instead of {expected}",
                hint="the file is damaged: export or download it again",
            )


def _values(tensor: onnx.TensorProto) -> int:
    """How many values of its typed field a tensor takes."""
    elements = math.prod(tensor.dims) * (2 if tensor.data_type in _COMPLEX else 1)
    return -(-elements // _VALUES_IN_ONE.get(_BITS.get(tensor.data_type, 8), 1))
