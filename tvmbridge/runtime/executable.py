"""A loaded model that several threads may call: one virtual machine for each of them over one set of weights."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from tvmbridge.runtime.kernel_clock import KernelClock
from tvmbridge.runtime.memory import HOST, Memory, bind_weights, make_memory
from tvmbridge.runtime.tensors import Array
from tvmbridge.runtime.threads import PoolSize
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_POOLED_ALLOCATOR = 2


@dataclass(frozen=True)
class _Caller:
    """What one calling thread uses. worker: a thread with a pool of its own, where the caller's is no use."""

    process_id: int
    main: tvm_ffi.Function
    memory: Memory
    worker: ThreadPoolExecutor | None


class Executable:
    """The compiled model on one device. Needs TVM's runtime loaded.

    module: the variant's library. signature: of the model. device: memory.HOST or memory.CUDA.
    """

    def __init__(
        self,
        module: tvm_ffi.Module,
        *,
        signature: ModelSignature,
        weights: Sequence[Array],
        device: tuple[int, int],
        threads: int,
    ) -> None:
        self._module = module
        self._signature = signature
        self._device = device
        self._pool = PoolSize(threads)
        bound = bind_weights(weights, device)
        self._weights: tuple[tvm_ffi.Array, ...] = () if bound is None else (bound,)
        self._callers = threading.local()
        # The first caller is most often the thread that loads; and what cannot start should say so now.
        self._callers.own = self._make_caller()

    def call(self, arrays: Sequence[Array], out: Sequence[Array | None] | None = None) -> list[Array]:
        """Run once; returns an array for each output, a new one or that of `out`.

        arrays: the inputs, of exactly the right dtypes and shapes. out: for each output, where to write it, or None.
        """
        if out is not None:
            arrays = [_keep_apart(array, out) for array in arrays]
        caller: _Caller | None = getattr(self._callers, "own", None)
        if caller is None or caller.process_id != os.getpid():
            caller = self._callers.own = self._make_caller()
        if caller.worker is not None:
            return caller.worker.submit(self._call_here, caller, arrays, out).result()
        self._pool.hold()
        return self._call_here(caller, arrays, out)

    def time_kernels(self, arrays: Sequence[Array], seconds: float) -> dict[str, float]:
        """Run for about `seconds`; the microseconds that each kernel takes of one run.

        Nothing for a GPU: its kernels run on after the call that starts them.
        """
        if self._device != HOST:
            return {}
        clock = KernelClock()
        caller = self._make_caller(clock)
        if caller.worker is not None:
            with caller.worker as worker:
                return worker.submit(clock.time_kernels, lambda: self._call_here(caller, arrays), seconds).result()
        self._pool.hold()
        return clock.time_kernels(lambda: self._call_here(caller, arrays), seconds)

    def _call_here(
        self, caller: _Caller, arrays: Sequence[Array], out: Sequence[Array | None] | None = None
    ) -> list[Array]:
        memory = caller.memory
        tensors = [memory.feed(index, array) for index, array in enumerate(arrays)]
        result: Any = caller.main(*tensors, *self._weights)
        outputs = (result,) if isinstance(result, tvm_ffi.Tensor) else result
        return [memory.fetch(i, output, None if out is None else out[i]) for i, output in enumerate(outputs)]

    def _make_caller(self, clock: KernelClock | None = None) -> _Caller:
        machine = self._module["vm_load_executable"]()
        # The host comes last, as TVM has it: shapes are computed there.
        devices = (self._device,) if self._device == HOST else (self._device, HOST)
        machine["vm_initialization"](*(number for device in devices for number in (*device, _POOLED_ALLOCATOR)))
        if clock is not None:
            machine["set_instrument"](tvm_ffi.convert(clock))
        worker = None if self._pool.apply() else self._start_worker()
        return _Caller(os.getpid(), machine["main"], make_memory(self._signature, self._device), worker)

    def _start_worker(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # seldom needed, and every start would pay for the import

        return ThreadPoolExecutor(1, "tvmbridge", initializer=self._pool.apply)


def _keep_apart(array: Array, out: Sequence[Array | None]) -> Array:
    """A copy of an input that a result is written over: another result may be that input as it came."""
    shared = any(place is not None and np.may_share_memory(array, place) for place in out)
    return array.copy() if shared else array
