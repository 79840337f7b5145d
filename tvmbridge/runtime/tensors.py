"""NumPy arrays to TVM tensors and back: aligned, of the exact dtype, copied only where that is needed."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import tvm_ffi

from tvmbridge.errors import InputError

ALIGNMENT_BYTES = 64  # kernels load whole vectors: at any other address the first one faults
Array = np.ndarray[Any, Any]


def allocate_aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A row-major array, its elements not set, at an address that ALIGNMENT_BYTES divides."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(size_bytes + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + size_bytes].view(dtype).reshape(shape)


def to_bits(array: Array) -> Array:
    """The same memory, of unsigned numbers where NumPy alone lacks the dtype: compiled code takes such inputs so."""
    return array if array.dtype.isbuiltin != 2 else array.view(f"uint{8 * array.dtype.itemsize}")


def is_lendable(array: Array) -> bool:
    """Whether TVM may read this memory itself: row-major and aligned."""
    interface = array.__array_interface__
    return interface["strides"] is None and interface["data"][0] % ALIGNMENT_BYTES == 0


def lend_array(array: Array) -> tvm_ffi.Tensor:
    """A CPU tensor on the array's memory, which `is_lendable` has passed; to be read, and no longer than the array."""
    if not array.flags.writeable:
        array = _writable_alias(array)
    if array.dtype.isbuiltin != 2:  # NumPy's own; dtype.name would say the same, ten times slower
        return tvm_ffi.from_dlpack(array)
    # NumPy's DLPack knows no such dtype: lend the bits, and say what they are on TVM's side.
    bits = tvm_ffi.from_dlpack(array.view(f"uint{8 * array.dtype.itemsize}"))
    return view_as(bits, array.shape, array.dtype.name)


def _writable_alias(array: Array) -> Array:
    """The same memory as an array that DLPack takes: NumPy lends out no read-only one."""
    room = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(room).view(array.dtype).reshape(array.shape)


def copy_to_array(tensor: tvm_ffi.Tensor, dtype: np.dtype[Any]) -> Array:
    """A new array with the elements of a CPU tensor of that dtype, or of its bits."""
    return _view(tensor, dtype).copy()


def copy_into_array(tensor: tvm_ffi.Tensor, array: Array) -> None:
    """Write the elements of a CPU tensor of the array's dtype, or of its bits, to it, however it lies in memory.

    Raises InputError where the shapes differ.
    """
    require_shape(tensor, array)
    np.copyto(array, _view(tensor, array.dtype), casting="no")


def require_shape(tensor: tvm_ffi.Tensor, array: Array) -> None:
    """Raise InputError where the array is of another shape: an axis that the run decides is known only after it."""
    if tuple(tensor.shape) != array.shape:
        raise InputError(f"an output has the shape {list(tensor.shape)}, the array given as out {list(array.shape)}")


def _view(tensor: tvm_ffi.Tensor, dtype: np.dtype[Any]) -> Array:
    if dtype.isbuiltin != 2:
        return np.from_dlpack(tensor)
    bits = view_as(tensor, tuple(tensor.shape), f"uint{8 * dtype.itemsize}")
    return np.from_dlpack(bits).view(dtype)


def view_as(tensor: tvm_ffi.Tensor, shape: tuple[int, ...], dtype: str) -> tvm_ffi.Tensor:
    """The same memory, of another shape and dtype."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), 0)
