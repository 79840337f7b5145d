"""What a kernel is timed on: random activations, and weights as cold as the network leaves them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
import tvm
import tvm_ffi

from tvmbridge.lowering import Kernel

_WARM_BYTES = 16 << 20  # of random data; what is larger repeats it
_ALIGNMENT_BYTES = 64  # what kernels are compiled for


def rotated_bytes(kernels: Sequence[Kernel], cache_bytes: int) -> int:
    """How many bytes of weights the calls of one kernel go through in turn; 0 where they stay in the cache.

    A network whose weights exceed the last-level cache reads them from memory at each run: then a call must not find
    them in the cache here either. Twice the cache, because no cache forgets strictly the oldest.
    """
    weights_bytes = sum(
        kernel.calls * _size_bytes(kernel.function.params[index]) for kernel in kernels for index in kernel.constants
    )
    return 2 * cache_bytes if weights_bytes > cache_bytes else 0


def _size_bytes(parameter: tvm.ir.Var) -> int:
    """Of a tensor; 0 where an axis is unknown."""
    extents = (int(axis) if isinstance(axis, tvm.tirx.IntImm) else 0 for axis in parameter.shape)
    return math.prod(extents) * ((tvm.DataType(str(parameter.dtype)).bits + 7) // 8)


class RandomData:
    """Made once in the worker: its children inherit it without a copy, and read their weights there."""

    def __init__(self, rotated_bytes: int) -> None:
        self.rotates = rotated_bytes > 0
        self._size_bytes = max(rotated_bytes, _WARM_BYTES)
        self._data: dict[str, np.ndarray] = {}

    def of(self, dtype: str) -> np.ndarray:
        """Normal random numbers, or zeros for integers: an index of zero is always in range."""
        if dtype not in self._data:
            # Not from numpy, whose large arrays are in huge pages: the weights of a network are not.
            room = mmap.mmap(-1, self._size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            data = np.frombuffer(room, np.uint8).view(dtype)
            if dtype.startswith(("float", "bfloat")):
                data[:] = np.random.default_rng(0).standard_normal(len(data), dtype=np.float32)
            else:
                data[:] = 0
            self._data[dtype] = data
        return self._data[dtype]

    def copy(self, parameter: tvm.ir.Var) -> tvm.runtime.Tensor:
        """Memory of a call's own, for a tensor that it writes or that the call before it wrote."""
        shape = [int(axis) for axis in parameter.shape]
        return tvm.runtime.tensor(np.resize(self.of(str(parameter.dtype))[: math.prod(shape)], shape))


class Operands:
    """The operands of a scheduled function's calls: the same activations each time, the weights in another place.

    constants: which parameters are weights. Weights that do not fit into the data have one place: no cache holds them.
    """

    def __init__(self, function: tvm.tirx.PrimFunc, constants: frozenset[int], data: RandomData) -> None:
        offsets, set_bytes = {}, 0
        for index in sorted(constants):
            offsets[index] = set_bytes
            size_bytes = _size_bytes(function.params[index])
            set_bytes += -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._parameters, self._data, self._set_bytes = function.params, data, set_bytes
        room_bytes = min((data.of(str(function.params[i].dtype)).nbytes for i in constants), default=0)
        self._offsets = offsets if set_bytes <= room_bytes else {}
        self._count = room_bytes // set_bytes if self._offsets and set_bytes and data.rotates else 1
        self._common = {i: data.copy(p) for i, p in enumerate(self._parameters) if i not in self._offsets}
        self._sets: list[list[tvm.runtime.Tensor]] = []
        self._turn = 0
        if self._count > 1:
            # A candidate timed before this one has left the first places in the cache.
            for dtype in {str(self._parameters[i].dtype) for i in self._offsets}:
                found = data.of(dtype)
                found[len(found) // 2 :].max()

    def take(self, calls: int) -> list[list[tvm.runtime.Tensor]]:
        """The operands of the next calls."""
        taken = []
        for _ in range(calls):
            if self._turn == len(self._sets):
                self._sets.append([self._operand(index) for index in range(len(self._parameters))])
            taken.append(self._sets[self._turn])
            self._turn = (self._turn + 1) % self._count
        return taken

    def _operand(self, index: int) -> tvm.runtime.Tensor:
        if index in self._common:
            return self._common[index]
        parameter = self._parameters[index]
        start = self._turn * self._set_bytes + self._offsets[index]
        room = self._data.of(str(parameter.dtype)).view(np.uint8)[start : start + _size_bytes(parameter)]
        # NumPy's DLPack does not know every dtype: lend the bytes, and say what they are on TVM's side.
        view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
        shape = tvm_ffi.Shape([int(axis) for axis in parameter.shape])
        return view(tvm_ffi.from_dlpack(room), shape, tvm_ffi.dtype(str(parameter.dtype)), 0)
