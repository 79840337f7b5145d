"""What the forked children of `fork_server` do: compile a candidate, time a library here, time it on a device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tvm
from tvm import rpc

from tvmbridge.codegen.compile import compile_library
from tvmbridge.device.server import DESCRIBE
from tvmbridge.device.tracker import borrow_device
from tvmbridge.errors import ToolchainError, reason
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Scheduled, recorded_templates
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References
from tvmbridge.tuning.measure.stopping import MOST_S, is_enough, is_hopeless
from tvmbridge.tuning.measure.trial import MORE_LOOKS, REPEAT_US, Trial, TrialError, in_words

_REPEATS_AT_ONCE = 5  # fewer decide nothing


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all jobs of a fork server share."""

    kernels: dict[str, Kernel]
    target: Target
    data: RandomData
    references: References


Arguments = dict[str, Any]
Say = Callable[..., None]


def build(arguments: Arguments, setting: Setting, say: Say) -> dict[str, Any]:
    """Compile one candidate into the shared library `library`.

    Returns {"parameters": [[shape, dtype], …]}; or {"error"} where the candidate cannot be compiled; or {"unable"}
    where nothing can be compiled on this machine.
    """
    say("compiling")
    try:
        scheduled = _link(_trial(arguments, setting), Path(arguments["library"]))
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
        trial = _trial(arguments, setting)
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
        session.upload(arguments["library"])
        if unfit := _why_not_fit(session, setting.target):
            return {"unable": f"the device {device} {unfit}"}
        library = session.load_module(Path(arguments["library"]).name)
        tensors = [tvm.runtime.tensor(array, session.cpu()) for array in _random_arrays(arguments["parameters"])]
        say("running", device=device)
        times_us = _time_there(library, session.cpu(), tensors, arguments["best_us"])
        trial = _trial(arguments, setting)
        trial.check(times_us, arguments["best_us"], lambda: _why_wrong_there(trial, library, session, setting))
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


def _trial(arguments: Arguments, setting: Setting) -> Trial:
    kernel = setting.kernels[arguments["kernel"]]
    template = next(t for t in recorded_templates(kernel, setting.target) if t.name == arguments["template"])
    return Trial(kernel, setting.target, template, arguments["config"])


def _link(trial: Trial, library: Path) -> Scheduled:
    scheduled = trial.schedule()
    module = tvm.IRModule({"main": scheduled.function.with_attr("global_symbol", "main")})
    compile_library(module, trial.target, library)
    return scheduled


def _time_there(
    library: tvm.runtime.Module, device: tvm.runtime.Device, tensors: list[tvm.runtime.Tensor], best_us: float | None
) -> list[float]:
    """Microseconds per call, of each repeat, with warm caches; a device's own clock counts."""
    started = time.perf_counter()
    timer = functools.partial(library.time_evaluator, "main", device)
    once = timer(number=1, repeat=1)
    call_us = once(*tensors).results[0] * 1e6
    for _ in range(MORE_LOOKS):
        if is_hopeless(call_us, best_us) and time.perf_counter() - started < MOST_S:
            call_us = min(call_us, once(*tensors).results[0] * 1e6)
    if is_hopeless(call_us, best_us):
        return [call_us]
    repeats = timer(number=max(1, math.ceil(REPEAT_US / max(call_us, 0.1))), repeat=_REPEATS_AT_ONCE)
    times_us: list[float] = []
    while not times_us or not is_enough(times_us, best_us, time.perf_counter() - started):
        times_us += [seconds * 1e6 for seconds in repeats(*tensors).results]
    return times_us


def _why_wrong_there(
    trial: Trial, library: tvm.runtime.Module, session: rpc.RPCSession, setting: Setting
) -> str | None:
    """What is wrong with the candidate's outputs on the device, beside those of the untuned schedule there."""

    def on_device(library: tvm.runtime.Module) -> Callable[..., None]:
        def call(*operands: tvm.runtime.Tensor) -> None:
            sent = [tvm.runtime.tensor(operand.numpy(), session.cpu()) for operand in operands]
            library["main"](*sent)
            for operand, result in zip(operands, sent, strict=True):
                operand.copyfrom(result.numpy())

        return call

    def untuned() -> tuple[Scheduled, Callable[..., None]]:
        with tempfile.TemporaryDirectory(prefix="tvmbridge-") as folder:
            path = Path(folder, "untuned.so")
            scheduled = _link(trial.untuned(), path)
            session.upload(str(path))
        return scheduled, on_device(session.load_module(path.name))

    return setting.references.why_wrong(trial.kernel, trial.schedule(), on_device(library), setting.data, untuned)


def _random_arrays(parameters: list[tuple[list[int], str]]) -> list[np.ndarray]:
    """Zeros for integers: an index of zero is always in range."""
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=shape).astype(dtype) if "float" in dtype else np.zeros(shape, dtype)
        for shape, dtype in parameters
    ]


def _why_not_fit(session: rpc.RPCSession, target: Target) -> str | None:
    """What would make every candidate fail on the device, or its times another target's; None if nothing would."""
    with contextlib.suppress(Exception):  # a device that has TVM's runtime only cannot say
        machine = session.get_function("target.llvm_get_system_triple")().partition("-")[0]
        if machine != target.machine:
            return f"is {machine}, {target.name} is for {target.machine}"
    told = _describe_itself(session)
    if told is not None and told["emulated"] != target.emulated:
        if target.emulated:
            return f"is not emulated, {target.name} is: take `emulated: true` from its targets.yaml, or another key"
        return f"is emulated, {target.name} is not: give it a key of its own, and say `emulated: true` beside that"
    threads = session.get_function("runtime.NumThreads")()
    if threads != target.cores:
        return (
            f"runs a kernel on {threads} threads, where {target.name} has cores: {target.cores}; "
            f"start its server with TVM_NUM_THREADS={target.cores}"
        )
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
