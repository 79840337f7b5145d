"""Where a call's tensors live: host memory, lent without a copy where it may be, or a CUDA device's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tvm_ffi

from tvmbridge.bundle.dtypes import numpy_dtype
from tvmbridge.runtime.tensors import (
    Array,
    allocate_aligned,
    copy_into_array,
    copy_to_array,
    is_lendable,
    lend_array,
    to_bits,
)
from tvmbridge.signature import ModelSignature, TensorSpec

HOST = (1, 0)  # kDLCPU
CUDA_TYPE = 2  # kDLCUDA


class Memory(Protocol):
    """Takes inputs to where the code reads them, and outputs back; one for each thread, it keeps buffers."""

    def feed(self, index: int, array: Any) -> tvm_ffi.Tensor:
        """The tensor of input `index`; valid until the next feed of that input, and while `array` is.

        array: an array, or what the session's `DeviceInputs` took.
        """

    def fetch(self, index: int, tensor: tvm_ffi.Tensor, out: Array | None) -> Array:
        """The elements of output `index` in `out`, or in a new array."""


class HostMemory:
    """Host memory: inputs are lent where they lie right, and copied to an aligned buffer where they do not."""

    def __init__(self, signature: ModelSignature) -> None:
        self._inputs = signature.inputs
        self._output_dtypes = [numpy_dtype(spec.dtype) for spec in signature.outputs]
        self._buffers: dict[int, tuple[Array, tvm_ffi.Tensor]] = {}

    def feed(self, index: int, array: Array) -> tvm_ffi.Tensor:
        """The array's own memory where TVM may read it, else this input's buffer."""
        array = to_bits(array)
        if is_lendable(array):
            return lend_array(array)
        if index not in self._buffers:
            room = allocate_aligned(fixed_shape(self._inputs[index]), array.dtype)
            self._buffers[index] = room, lend_array(room)
        room, tensor = self._buffers[index]
        np.copyto(room, array, casting="no")
        return tensor

    def fetch(self, index: int, tensor: tvm_ffi.Tensor, out: Array | None) -> Array:
        """A copy: the next call may write to the tensor's memory again."""
        if out is None:
            return copy_to_array(tensor, self._output_dtypes[index])
        copy_into_array(tensor, out)
        return out


def bind_weights(weights: Sequence[Array], device: tuple[int, int]) -> tvm_ffi.Array | None:
    """The weights as the one argument that the compiled model takes them in; None where it takes none.

    On the host they stay where they are mapped; a device gets them once, here.
    """
    if not weights:
        return None
    if device == HOST:
        return tvm_ffi.Array([_lend_weight(weight) for weight in weights])
    tensors = []
    for weight in weights:
        tensors.append(allocate_on_device(weight.shape, weight.dtype.name, device))
        copy_to_device(weight, tensors[-1])
    return tvm_ffi.Array(tensors)


def allocate_on_device(shape: tuple[int, ...], dtype: str, device: tuple[int, int]) -> tvm_ffi.Tensor:
    """A tensor on a device, its elements not set."""
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), tvm_ffi.device(*device), None)


def copy_to_device(array: Array, tensor: tvm_ffi.Tensor) -> None:
    """Copy an array's elements into a tensor of the same size; the array may change afterwards."""
    plain = np.ascontiguousarray(array)
    if plain.size:
        copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
        copy(tensor, ctypes.c_void_p(plain.ctypes.data), plain.nbytes)


def _lend_weight(weight: Array) -> tvm_ffi.Tensor:
    if is_lendable(weight):
        return lend_array(weight)
    aligned = allocate_aligned(weight.shape, weight.dtype)
    aligned[...] = weight
    return lend_array(aligned)


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of an input: the manifest's checks leave no dimension of one open."""
    return tuple(axis for axis in spec.shape if axis is not None)
