"""A loaded model that several threads may call: one virtual machine for each of them over one set of weights."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import tvm_ffi

from tvmbridge.bundle.dtypes import numpy_dtype
from tvmbridge.bundle.manifest import WITHOUT_GRAPHS
from tvmbridge.errors import ArtifactError, reason
from tvmbridge.runtime.gpu_events import GpuEvents
from tvmbridge.runtime.gpu_memory import GpuInputs, GpuMemory, keep_apart, wait_for
from tvmbridge.runtime.gpu_turns import GPU_TURNS
from tvmbridge.runtime.kernel_clock import KernelClock
from tvmbridge.runtime.memory import HOST, HostMemory, Memory, bind_weights, fixed_shape
from tvmbridge.runtime.native import cuda_functions
from tvmbridge.runtime.tensors import Array
from tvmbridge.runtime.threads import PoolSize
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_POOLED_ALLOCATOR = 2
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Caller:
    """What one calling thread uses.

    worker: a thread with a pool of its own, where the caller's is no use. shares_machine: whether other threads call
    the same virtual machine, which does one call at a time.
    """

    process_id: int
    main: tvm_ffi.Function
    memory: Memory
    worker: ThreadPoolExecutor | None
    shares_machine: bool


class Executable:
    """The compiled model on one device. Needs TVM's runtime loaded.

    module: the variant's library. signature: of the model. device: DLPack's, memory.HOST or (2, a GPU's index).
    cuda_graphs: whether its main launches CUDA graphs: these belong to one virtual machine, which all threads then use.
    device_inputs: takes inputs that lie on the GPU; None on the CPU.
    """

    def __init__(
        self,
        module: tvm_ffi.Module,
        *,
        signature: ModelSignature,
        weights: Sequence[Array],
        device: tuple[int, int],
        threads: int,
        cuda_graphs: bool = False,
    ) -> None:
        self._module = module
        self._signature = signature
        self._device = device
        self._pool = PoolSize(threads)
        self._turns: AbstractContextManager[None] = nullcontext() if device == HOST else GPU_TURNS
        self._shared: tvm_ffi.Module | None = None  # the machine with the graphs
        self._launching = threading.Lock()
        self.device_inputs = None if device == HOST else GpuInputs(device)
        self._callers = threading.local()
        with self._turns:
            bound = bind_weights(weights, device)
            self._weights: tuple[tvm_ffi.Array, ...] = () if bound is None else (bound,)
            self._weight_places = frozenset(weight.data_ptr() for weight in bound or ())
            if cuda_graphs:
                self._shared = self._make_machine()
            # The first caller is most often the thread that loads; and what cannot start should say so now.
            self._callers.own = self._make_caller()
        if device != HOST:
            self._make_first_call([np.zeros(fixed_shape(spec), numpy_dtype(spec.dtype)) for spec in signature.inputs])

    def call(self, arrays: Sequence[Any], out: Sequence[Array | None] | None = None) -> list[Array]:
        """Run once; returns an array for each output, a new one or that of `out`.

        arrays: the inputs, of exactly the right dtypes and shapes, or what `device_inputs` took. out: for each output,
        where to write it, or None.
        """
        if out is not None and self._device == HOST:
            arrays = [_keep_apart(array, out) for array in arrays]
        return self._on_own_thread(lambda caller: self._call_here(caller, arrays, out))

    def call_on_device(self, arrays: Sequence[Any]) -> list[tvm_ffi.Tensor]:
        """Run once on a GPU, and leave the outputs there, complete, each in memory of its own."""

        def call(caller: _Caller) -> list[tvm_ffi.Tensor]:
            tensors = [caller.memory.feed(index, array) for index, array in enumerate(arrays)]
            taken = self._weight_places.union(tensor.data_ptr() for tensor in tensors)
            kept = keep_apart(self._run(caller, tensors), taken)
            wait_for(self._device)
            return kept

        return self._on_own_thread(call)

    def time_kernels(self, arrays: Sequence[Any], seconds: float) -> dict[str, float]:
        """Run for about `seconds`; the microseconds that each kernel takes of one run, on a GPU by its own clock.

        Each kernel is launched by itself, also where calls launch graphs.
        """
        with self._turns:
            return self._time_kernels(arrays, seconds)

    def _time_kernels(self, arrays: Sequence[Any], seconds: float) -> dict[str, float]:
        events = None if self._device == HOST else GpuEvents(cuda_functions())
        clock = KernelClock() if events is None else KernelClock(events.record, events.seconds_between, events.reuse)
        caller = self._make_caller(clock)
        try:
            if caller.worker is not None:
                with caller.worker as worker:
                    return worker.submit(clock.time_kernels, lambda: self._call_here(caller, arrays), seconds).result()
            self._pool.hold()
            return clock.time_kernels(lambda: self._call_here(caller, arrays), seconds)
        finally:
            if events is not None:
                events.close()

    def _make_first_call(self, arrays: Sequence[Array]) -> None:
        """On a GPU, when the session is made: TVM loads a GPU's code when it is first called, and captures graphs."""
        machine = self._shared
        if machine is None:
            self.call(arrays)
            return
        # Of PTX the driver first makes code, which takes long: no other thread has to wait for that.
        once = machine[WITHOUT_GRAPHS]
        self._on_own_thread(lambda caller: self._call_here(dataclasses.replace(caller, main=once), arrays))
        # TVM captures in CUDA's global mode: work that any thread asks of the GPU meanwhile fails, and the capture too.
        # Our own threads wait for their turn, and no other of Python's begins anything while this one holds the GIL.
        capture = machine["main"]
        capture.release_gil = False
        try:
            with GPU_TURNS.alone():
                self._in_turn(lambda caller: self._call_here(dataclasses.replace(caller, main=capture), arrays))
        except Exception as exc:  # TVM's own errors
            raise ArtifactError(
                f"its CUDA graphs cannot be captured: {reason(exc)}",
                hint="load it before other threads of this process use a GPU, or build it without cuda_graphs",
            ) from exc

    def _on_own_thread(self, call: Callable[[_Caller], Result]) -> Result:
        """Call with what belongs to the calling thread, on it or on its worker."""
        with self._turns:
            return self._in_turn(call)

    def _in_turn(self, call: Callable[[_Caller], Result]) -> Result:
        caller: _Caller | None = getattr(self._callers, "own", None)
        if caller is None or caller.process_id != os.getpid():
            caller = self._callers.own = self._make_caller()
        if caller.worker is not None:
            return caller.worker.submit(call, caller).result()
        self._pool.hold()
        return call(caller)

    def _call_here(
        self, caller: _Caller, arrays: Sequence[Any], out: Sequence[Array | None] | None = None
    ) -> list[Array]:
        memory = caller.memory
        outputs = self._run(caller, [memory.feed(index, array) for index, array in enumerate(arrays)])
        return [memory.fetch(i, output, None if out is None else out[i]) for i, output in enumerate(outputs)]

    def _run(self, caller: _Caller, tensors: list[tvm_ffi.Tensor]) -> list[tvm_ffi.Tensor]:
        if caller.shares_machine:
            with self._launching:
                # A graph is launched on the stream of the thread's GPU, which a new thread has not chosen.
                cuda_functions().cudaSetDevice(self._device[1])
                result: Any = caller.main(*tensors, *self._weights)
        else:
            result = caller.main(*tensors, *self._weights)
        return [result] if isinstance(result, tvm_ffi.Tensor) else list(result)

    def _make_machine(self) -> tvm_ffi.Module:
        machine = self._module["vm_load_executable"]()
        # The host comes last, as TVM has it: shapes are computed there.
        devices = (self._device,) if self._device == HOST else (self._device, HOST)
        machine["vm_initialization"](*(number for device in devices for number in (*device, _POOLED_ALLOCATOR)))
        return machine

    def _make_caller(self, clock: KernelClock | None = None) -> _Caller:
        """What the calling thread uses from now on, or, with a clock, for the calls that it times."""
        machine = self._make_machine() if self._shared is None or clock is not None else self._shared
        if clock is not None:
            machine["set_instrument"](tvm_ffi.convert(clock))
        main = machine["main" if self._shared is None or clock is None else WITHOUT_GRAPHS]
        worker = None if self._pool.apply() else self._start_worker()
        on_host = self._device == HOST
        memory: Memory = HostMemory(self._signature) if on_host else GpuMemory(self._signature, self._device)
        return _Caller(os.getpid(), main, memory, worker, shares_machine=machine is self._shared)

    def _start_worker(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # seldom needed, and every start would pay for the import

        return ThreadPoolExecutor(1, "tvmbridge", initializer=self._pool.apply)


def _keep_apart(array: Array, out: Sequence[Array | None]) -> Array:
    """A copy of an input that a result is written over: another result may be that input as it came."""
    shared = any(place is not None and np.may_share_memory(array, place) for place in out)
    return array.copy() if shared else array
