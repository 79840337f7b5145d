"""A GPU's memory: arrays go there and back through pinned host memory, and what lies there already is used in place.

All work of a process goes to CUDA's legacy default stream, call after call: TVM's pool hands a block of memory that one
call has let go of to the next, which is right only in the order of one stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any

import numpy as np
import tvm_ffi

from tvmbridge.bundle.dtypes import numpy_dtype, storage
from tvmbridge.errors import InputError
from tvmbridge.runtime.feeds import require_in_range
from tvmbridge.runtime.gpu_turns import GPU_TURNS
from tvmbridge.runtime.memory import CUDA_TYPE, allocate_on_device, fixed_shape
from tvmbridge.runtime.tensors import ALIGNMENT_BYTES, Array, require_shape, view_as
from tvmbridge.signature import ModelSignature, TensorSpec

_PINNED = (3, 0)  # kDLCUDAHost
_LEGACY_STREAM = 1  # DLPack's number of CUDA's legacy default stream


class _Pinned:
    """Host memory that a GPU reads and writes by itself, as a tensor and as an array."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.tensor = allocate_on_device(shape, storage(dtype), _PINNED)
        size_bytes = int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize
        room = (ctypes.c_uint8 * size_bytes).from_address(self.tensor.data_ptr())
        self.array: Array = np.ctypeslib.as_array(room).view(numpy_dtype(dtype)).reshape(shape)


class GpuMemory:
    """The `Memory` of one thread's calls on one GPU."""

    def __init__(self, signature: ModelSignature, device: tuple[int, int]) -> None:
        self._outputs, self._device = signature.outputs, device
        self._copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        self._sent = [_Pinned(fixed_shape(spec), spec.dtype) for spec in signature.inputs]
        self._tensors = [
            allocate_on_device(fixed_shape(spec), storage(spec.dtype), device) for spec in signature.inputs
        ]
        self._received: dict[int, _Pinned] = {}

    def feed(self, index: int, array: Array | tvm_ffi.Tensor) -> tvm_ffi.Tensor:
        """A tensor on the GPU with the elements; that of the caller where it is one that kernels can read."""
        if isinstance(array, tvm_ffi.Tensor):
            if array.data_ptr() % ALIGNMENT_BYTES == 0:
                return array
            self._copy(array, self._tensors[index])
        elif array.size:
            # The call before this one has waited for the GPU, which so has read what was here.
            np.copyto(self._sent[index].array, array, casting="no")
            self._copy(self._sent[index].tensor, self._tensors[index])
        return self._tensors[index]

    def fetch(self, index: int, tensor: tvm_ffi.Tensor, out: Array | None) -> Array:
        """A host copy; waits for the GPU."""
        if out is not None:
            require_shape(tensor, out)
        shape, dtype = tuple(tensor.shape), self._outputs[index].dtype
        if 0 in shape:
            return np.empty(shape, numpy_dtype(dtype)) if out is None else out
        received = self._received.get(index)
        if received is None or received.array.shape != shape:
            received = self._received[index] = _Pinned(shape, dtype)
        self._copy(tensor, received.tensor)
        wait_for(self._device)
        if out is None:
            return received.array.copy()
        np.copyto(out, received.array, casting="no")
        return out


def keep_apart(outputs: list[tvm_ffi.Tensor], taken: Collection[int]) -> list[tvm_ffi.Tensor]:
    """The outputs, each in memory of its own: copies of those that share an address with `taken` or with each other."""
    seen, kept = set(taken), []
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    for output in outputs:
        if output.data_ptr() in seen:
            own = allocate_on_device(tuple(output.shape), str(output.dtype), output.__dlpack_device__())
            copy(output, own)
            output = own
        seen.add(output.data_ptr())
        kept.append(output)
    return kept


def wait_for(device: tuple[int, int]) -> None:
    """Return when a GPU has done all that was asked of it."""
    tvm_ffi.get_global_func("runtime.Device_StreamSync")(tvm_ffi.device(*device), 0)


class GpuInputs:
    """Takes inputs that lie on the session's GPU already, by DLPack."""

    def __init__(self, device: tuple[int, int]) -> None:
        self._device = device

    def take(self, spec: TensorSpec, value: Any) -> tvm_ffi.Tensor | None:
        """The value as a tensor of exactly the dtype and shape of the spec; None where it lies on no GPU.

        Its producer lets our stream wait for its own. Raises InputError.
        """
        if not hasattr(value, "__dlpack_device__"):
            return None
        kind, index = value.__dlpack_device__()
        if kind != CUDA_TYPE:
            return None
        if (kind, index) != self._device:
            raise InputError(f"input {spec.name!r}: lies on cuda:{index}, the session runs on cuda:{self._device[1]}")
        with GPU_TURNS:
            return self._import(spec, value)

    def _import(self, spec: TensorSpec, value: Any) -> tvm_ffi.Tensor:
        try:
            tensor = tvm_ffi.from_dlpack(_Capsule(value.__dlpack__(stream=_LEGACY_STREAM)))
        except Exception as exc:  # what a library of arrays says to this may be anything
            raise InputError(f"input {spec.name!r}: a {type(value).__name__} gives no tensor: {exc}") from exc
        if str(tensor.dtype) not in (spec.dtype, storage(spec.dtype)):
            raise InputError(f"input {spec.name!r}: dtype {tensor.dtype} given, {spec.dtype} expected")
        if tuple(tensor.shape) != fixed_shape(spec):
            raise InputError(f"input {spec.name!r}: shape {list(tensor.shape)} given, {list(spec.shape)} expected")
        if not tensor.is_contiguous():
            raise InputError(f"input {spec.name!r}: is not row-major in memory", hint="give .contiguous()")
        if spec.index_limit is not None:
            require_in_range(spec, _read(tensor, spec))
        if str(tensor.dtype) != storage(spec.dtype):
            return view_as(tensor, tuple(tensor.shape), storage(spec.dtype))
        return tensor


class _Capsule:
    """What a producer has exported, for tvm_ffi, which would not name a stream when it asks for it."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self) -> object:
        return self._capsule


def _read(tensor: tvm_ffi.Tensor, spec: TensorSpec) -> Array:
    array: Array = np.empty(tuple(tensor.shape), numpy_dtype(spec.dtype))
    if array.size:
        copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        copy(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return array
