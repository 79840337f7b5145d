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
    """Refuse a model with a raw tensor whose bytes do not match its shape and type."""
    for tensor in tensors(model):
        if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            continue
        expected = tensor_size_bytes(tensor, source)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise ModelFileError(
                f"{source}: tensor {tensor.name!r} holds {len(tensor.raw_data)} bytes instead of {expected}",
                hint="the file is damaged: export or download it again",
            )
