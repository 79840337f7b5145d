"""What the forked children of `fork_server` do: compile a candidate, time a library here, time it on a device."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tvm
from tvm import rpc

from tvmbridge.device.server import DESCRIBE
from tvmbridge.device.tracker import borrow_device
from tvmbridge.errors import ToolchainError, reason
from tvmbridge.gpus import Gpu
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure.on_device import (
    Arguments,
    Setting,
    check_on_device,
    find_trial,
    link_trial,
    place_there,
    random_arrays,
    time_on_device,
)
from tvmbridge.tuning.measure.trial import TrialError, in_words

Say = Callable[..., None]


def build(arguments: Arguments, setting: Setting, say: Say) -> dict[str, Any]:
    """Compile one candidate into the shared library `library`.

    Returns {"parameters": [[shape, dtype], …]}; or {"error"} where the candidate cannot be compiled; or {"unable"}
    where nothing can be compiled on this machine.
    """
    say("compiling")
    try:
        scheduled = link_trial(find_trial(arguments, setting), setting, Path(arguments["library"]))
    except TrialError as exc:
        return {"error": str(exc)}
    except (ToolchainError, OSError) as exc:
        return {"unable": str(exc)}
    except Exception as exc:  # whatever it was, this candidate failed, and its record says why
        return {"error": in_words("cannot be compiled", exc)}
    return {"parameters": [[[int(axis) for axis in p.shape], str(p.dtype)] for p in scheduled.function.params]}


def time_here(arguments: Arguments, setting: Setting, say: Say) -> dict[str, Any]:
    """Time a candidate's library on this machine, as `worker` does: {"times_us"} or {"error"}."""
    say("running")
    try:
        trial = find_trial(arguments, setting)
        function = tvm.runtime.load_module(arguments["library"])["main"]
        best_us = arguments["best_us"]
        return {"times_us": trial.time(trial.schedule(), function, setting.data, setting.references, best_us)}
    except TrialError as exc:
        return {"error": str(exc)}
    except Exception as exc:  # as above
        return {"error": in_words("failed while running", exc)}


def make_data(arguments: Arguments, setting: Setting) -> None:
    """Before the fork that times: what all children read is made once."""
    for parameter in setting.kernels[arguments["kernel"]].function.params:
        setting.data.of(str(parameter.dtype))


def time_there(arguments: Arguments, setting: Setting, say: Say) -> dict[str, Any]:
    """Time a library on a device of the tracker: {"times_us"} or {"error"}.

    {"no_device"} where none could be had, {"lost"} where the session broke, {"late"} where the device has ended it for
    its length, {"unable"} where the device is not fit.
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
        if unfit := _why_not_fit(session, setting.target):
            return {"unable": f"the device {device} {unfit}"}
        place = place_there(session, setting.target)
        library = place.load(Path(arguments["library"]))
        tensors = [tvm.runtime.tensor(array, place.device) for array in random_arrays(arguments["parameters"])]
        say("running", device=device)
        times_us = time_on_device(library, place, tensors, arguments["best_us"])
        check_on_device(find_trial(arguments, setting), library, place, setting, times_us, arguments["best_us"])
        return {"times_us": times_us}
    except TrialError as exc:
        return {"error": str(exc)}
    except Exception as exc:  # the candidate's fault where the session still answers, the device's where it does not
        if type(exc).__name__ == "RPCSessionTimeoutError":
            return {"late": True}
        return {"error": f"failed while running: {_last_line(exc)}"} if _answers(session) else {"lost": _last_line(exc)}


def _no_preparation(_arguments: Arguments, _setting: Setting) -> None:
    pass


# What a child does, and what is done before it is forked.
JOBS = {
    "build": (build, _no_preparation),
    "time_here": (time_here, make_data),
    "time_there": (time_there, make_data),
}


def _why_not_fit(session: rpc.RPCSession, target: Target) -> str | None:
    """What would make every candidate fail on the device, or its times another target's; None if nothing would."""
    with contextlib.suppress(Exception):  # a device that has TVM's runtime only cannot say
        machine = session.get_function("target.llvm_get_system_triple")().partition("-")[0]
        if machine != target.machine:
            return f"is {machine}, {target.name} is for {target.machine}"
    told = _describe_itself(session)
    if target.kind == "cuda" and (unfit := _why_no_gpu(session, target)):
        return unfit
    if told is not None and _times_emulated(told, target) != target.emulated:
        if target.emulated:
            return f"is not emulated, {target.name} is: take `emulated: true` from its targets.yaml, or another key"
        return f"is emulated, {target.name} is not: give it a key of its own, and say `emulated: true` beside that"
    threads = session.get_function("runtime.NumThreads")()
    if threads != target.cores and target.kind != "cuda":
        return (
            f"runs a kernel on {threads} threads, where {target.name} has cores: {target.cores}; "
            f"start its server with TVM_NUM_THREADS={target.cores}"
        )
    return None


def _times_emulated(told: Mapping[str, Any], target: Target) -> bool:
    gpus = told.get("gpus", ()) if target.kind == "cuda" else ()
    return bool(told["emulated"]) or any(gpu["emulated"] for gpu in gpus[:1])


def _why_no_gpu(session: rpc.RPCSession, target: Target) -> str | None:
    """What is wrong with the device's first GPU; None where it runs the target's code."""
    try:
        version = session.cuda(0).compute_version if session.cuda(0).exist else None
    except Exception as exc:  # its TVM has no CUDA runtime, which needs a driver and NVIDIA's libcudart
        return f"offers no CUDA GPU: {_last_line(exc)}"
    if version is None:
        return "has no CUDA GPU"
    gpu = Gpu("", f"sm_{version.replace('.', '')}")
    if not any(gpu.runs(architecture) for architecture in target.architectures):
        return f"has a GPU of {gpu.architecture}, code is made for {', '.join(target.architectures)}"
    return None


def _describe_itself(session: rpc.RPCSession) -> dict[str, Any] | None:
    """What our server says of its device; None for TVM's own, which says nothing."""
    try:
        describe = session.get_function(DESCRIBE)
    except Exception:
        return None
    described: dict[str, Any] = json.loads(describe())
    return described


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
