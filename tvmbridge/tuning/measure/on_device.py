"""Times a library by its device's own clock, on a GPU here or on a device over RPC, and checks what it gives."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import rpc

from tvmbridge.codegen.compile import compile_library
from tvmbridge.codegen.cuda_candidate import compile_candidate
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Scheduled, recorded_templates
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References
from tvmbridge.tuning.measure.stopping import MOST_S, is_enough, is_hopeless
from tvmbridge.tuning.measure.trial import MORE_LOOKS, REPEAT_US, Trial

_REPEATS_AT_ONCE = 5  # fewer decide nothing
_FLUSHED = 2  # times the L2 cache of a GPU is written over: no cache forgets strictly the oldest

Arguments = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all measurements of a tuning run share. architectures: that a GPU's candidates are compiled for."""

    kernels: dict[str, Kernel]
    target: Target
    architectures: tuple[str, ...]
    data: RandomData
    references: References


@dataclasses.dataclass(frozen=True)
class Place:
    """A device, and how a library gets there."""

    device: tvm.runtime.Device
    load: Callable[[Path], tvm.runtime.Module]

    @property
    def flush_bytes(self) -> int:
        """What is written between two calls, so that none finds data in a GPU's cache; 0 on a CPU."""
        if self.device.dlpack_device_type() == tvm.cpu().dlpack_device_type():
            return 0
        return _FLUSHED * int(self.device.l2_cache_size_bytes or 0)


def place_here() -> Place:
    """The first GPU of this machine."""
    return Place(tvm.cuda(0), lambda path: tvm.runtime.load_module(str(path)))


def place_there(session: rpc.RPCSession, target: Target) -> Place:
    """The device of a session."""

    def load(path: Path) -> tvm.runtime.Module:
        session.upload(str(path))
        return session.load_module(path.name)

    return Place(session.cuda(0) if target.kind == "cuda" else session.cpu(), load)


def find_trial(arguments: Arguments, setting: Setting) -> Trial:
    """The trial that arguments of a job name."""
    kernel = setting.kernels[arguments["kernel"]]
    template = next(t for t in recorded_templates(kernel, setting.target) if t.name == arguments["template"])
    return Trial(kernel, setting.target, template, arguments["config"])


def link_trial(trial: Trial, setting: Setting, library: Path) -> Scheduled:
    """Compile a candidate into a library; its scheduled function."""
    scheduled = trial.schedule()
    module = tvm.IRModule({"main": scheduled.function.with_attr("global_symbol", "main")})
    if trial.target.kind == "cuda":
        compile_candidate(module, trial.target, setting.architectures, library)
    else:
        compile_library(module, trial.target, library)
    return scheduled


def time_on_device(
    library: tvm.runtime.Module, place: Place, tensors: Sequence[tvm.runtime.Tensor], best_us: float | None
) -> list[float]:
    """Microseconds per call, of each repeat; a device's own clock counts.

    On a CPU with warm caches, as many calls to a repeat as fill a millisecond. On a GPU one call to a repeat, with the
    L2 cache written over before it: a network's weights are not there when their turn comes.
    """
    started = time.perf_counter()
    flush_bytes = place.flush_bytes
    timer = functools.partial(library.time_evaluator, "main", place.device, cache_flush_bytes=flush_bytes)
    once = timer(number=1, repeat=1)
    call_us = once(*tensors).results[0] * 1e6
    for _ in range(MORE_LOOKS):
        if is_hopeless(call_us, best_us) and time.perf_counter() - started < MOST_S:
            call_us = min(call_us, once(*tensors).results[0] * 1e6)
    if is_hopeless(call_us, best_us):
        return [call_us]
    calls = 1 if flush_bytes else max(1, math.ceil(REPEAT_US / max(call_us, 0.1)))
    repeats = timer(number=calls, repeat=_REPEATS_AT_ONCE)
    times_us: list[float] = []
    while not times_us or not is_enough(times_us, best_us, time.perf_counter() - started):
        times_us += [seconds * 1e6 for seconds in repeats(*tensors).results]
    return times_us


def check_on_device(
    trial: Trial,
    library: tvm.runtime.Module,
    place: Place,
    setting: Setting,
    times_us: Sequence[float],
    best_us: float | None,
) -> None:
    """TrialError where a candidate that may win gives other outputs than the untuned schedule on the same device."""

    def on_device(library: tvm.runtime.Module) -> Callable[..., None]:
        def call(*operands: tvm.runtime.Tensor) -> None:
            sent = [tvm.runtime.tensor(operand.numpy(), place.device) for operand in operands]
            library["main"](*sent)
            for operand, result in zip(operands, sent, strict=True):
                operand.copyfrom(result.numpy())

        return call

    def untuned() -> tuple[Scheduled, Callable[..., None]]:
        with tempfile.TemporaryDirectory(prefix="tvmbridge-") as folder:
            path = Path(folder, "untuned.so")
            scheduled = link_trial(trial.untuned(), setting, path)
            return scheduled, on_device(place.load(path))

    def why_wrong() -> str | None:
        return setting.references.why_wrong(trial.kernel, trial.schedule(), on_device(library), setting.data, untuned)

    trial.check(times_us, best_us, why_wrong)


def random_arrays(parameters: Sequence[tuple[Sequence[int], str]]) -> list[np.ndarray]:
    """Zeros for integers: an index of zero is always in range."""
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=shape).astype(dtype) if "float" in dtype else np.zeros(shape, dtype)
        for shape, dtype in parameters
    ]
