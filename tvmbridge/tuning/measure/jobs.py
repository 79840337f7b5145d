"""What the forked children of `fork_server` do: compile a candidate, time a library here, time it on a device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tvm
from tvm import rpc

from tvmbridge.codegen.compile import compile_library
from tvmbridge.errors import CompileError, ToolchainError, reason
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import recorded_templates
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure.tracker import borrow_device

_REPEATS = 5
_REPEAT_MS = 10
_HOPELESS = 3.0  # a first run this many times slower than the best known ends the trial: it cannot win

Say = Callable[..., None]
Job = Callable[[dict[str, Any], dict[str, Kernel], Target, Say], dict[str, Any]]


def build(arguments: dict[str, Any], kernels: dict[str, Kernel], target: Target, say: Say) -> dict[str, Any]:
    """Compile one candidate into the shared library `library`.

    Returns {"parameters": [[shape, dtype], …]}; or {"error"} where the candidate cannot be compiled; or {"unable"}
    where nothing can be compiled on this machine.
    """
    say("compiling")
    kernel = kernels[arguments["kernel"]]
    try:
        template = next(t for t in recorded_templates(kernel, target) if t.name == arguments["template"])
        function = template.schedule(kernel, target, arguments["config"]).function
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        compile_library(module, target, Path(arguments["library"]))
    except (ToolchainError, OSError) as exc:
        return {"unable": str(exc)}
    except CompileError as exc:
        return {"error": exc.message}
    except Exception as exc:  # whatever it was, this candidate failed, and its record says why
        return {"error": reason(exc)}
    return {"parameters": [[[int(axis) for axis in p.shape], str(p.dtype)] for p in function.params]}


def time_here(arguments: dict[str, Any], kernels: dict[str, Kernel], target: Target, say: Say) -> dict[str, Any]:
    """Time a library on this machine: {"times_us"} or {"error"}."""
    say("running")
    try:
        library = tvm.runtime.load_module(arguments["library"])
        tensors = [tvm.runtime.tensor(array) for array in _data(arguments["parameters"])]
        return {"times_us": _times_us(library, tvm.cpu(), tensors, arguments["best_us"])}
    except Exception as exc:  # as above
        return {"error": reason(exc)}


def time_there(arguments: dict[str, Any], kernels: dict[str, Kernel], target: Target, say: Say) -> dict[str, Any]:
    """Time a library on a device of the tracker: {"times_us"} or {"error"}.

    {"no_device"} where none could be had, {"lost"} where the session broke, {"unable"} where the device is not fit.
    """
    say("asking")
    try:
        host, port, session_key = borrow_device(msgspec.convert(arguments["place"], RpcMeasure))
        device = f"{host}:{port}"
        say("connecting", device=device)
        session = rpc.connect(host, port, session_key, arguments["session_s"])
    except Exception as exc:  # a device that went away: sockets in Python and in TVM raise many kinds
        return {"no_device": reason(exc)}
    say("uploading", device=device)
    try:
        session.upload(arguments["library"])
        if unfit := _why_not_fit(session, target):
            return {"unable": f"the device {device} {unfit}"}
        library = session.load_module(Path(arguments["library"]).name)
        tensors = [tvm.runtime.tensor(array, session.cpu()) for array in _data(arguments["parameters"])]
        say("running", device=device)
        return {"times_us": _times_us(library, session.cpu(), tensors, arguments["best_us"])}
    except Exception as exc:  # the candidate's fault where the session still answers, the device's where it does not
        if type(exc).__name__ == "RPCSessionTimeoutError":  # the device itself has ended the session
            return {"late": True}
        return {"error": _last_line(exc)} if _answers(session) else {"lost": _last_line(exc)}


JOBS: dict[str, Job] = {"build": build, "time_here": time_here, "time_there": time_there}


def _times_us(
    library: tvm.runtime.Module, device: tvm.runtime.Device, tensors: list[tvm.runtime.Tensor], best_us: float | None
) -> list[float]:
    """Microseconds per call, one figure a repeat, caches warm."""
    timer = functools.partial(library.time_evaluator, "main", device, number=1)
    once_us = timer(repeat=2)(*tensors).results[-1] * 1e6
    if best_us is not None and once_us > _HOPELESS * best_us:
        return [once_us]
    return [seconds * 1e6 for seconds in timer(repeat=_REPEATS, min_repeat_ms=_REPEAT_MS)(*tensors).results]


def _data(parameters: list[tuple[list[int], str]]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=shape).astype(dtype) if "float" in dtype else np.zeros(shape, dtype)
        for shape, dtype in parameters  # indices: zero is always in range
    ]


def _why_not_fit(session: rpc.RPCSession, target: Target) -> str | None:
    """What would make every candidate fail on the device, or its times another target's; None if nothing would."""
    with contextlib.suppress(Exception):  # a device that has TVM's runtime only cannot say
        machine = session.get_function("target.llvm_get_system_triple")().partition("-")[0]
        if machine != target.machine:
            return f"is {machine}, {target.name} is for {target.machine}"
    threads = session.get_function("runtime.NumThreads")()
    if threads != target.cores:
        return (
            f"runs a kernel on {threads} threads, where {target.name} has cores: {target.cores}; "
            f"start its server with TVM_NUM_THREADS={target.cores}"
        )
    return None


def _answers(session: rpc.RPCSession) -> bool:
    try:
        session.get_function("runtime.NumThreads")()
    except Exception:
        return False
    return True


def _last_line(exc: Exception) -> str:
    """TVM's errors over RPC hold two traces; what went wrong is said last."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
