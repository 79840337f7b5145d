"""Kernels scheduled by a trace of schedule primitives, such as TVM's MetaSchedule finds: for CPU and GPU alike.

The config is {"trace": "<JSON text of the trace>"}.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.half_values import without_round_trips
from tvmbridge.schedules.loops.differences import without_divided_differences
from tvmbridge.schedules.tensor_spaces import replay_tensor_trace
from tvmbridge.schedules.trace import is_for_tensor_cores, parse_trace, render_trace
from tvmbridge.targets import Target

_MAX_LANES = 1024  # far above MetaSchedule's 64; LLVM takes minutes for vectors much longer


def workload(kernel: Kernel) -> tvm.IRModule:
    """A copy of the unscheduled kernel in the form in which MetaSchedule keeps kernels."""
    function = tvm.ir.load_json(tvm.ir.save_json(kernel.function))
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def trace_config(trace: Trace) -> Config:
    """The config that replays the trace."""
    return {"trace": render_trace(trace.as_json())}


def replay(kernel: Kernel, target: Target, config: Config) -> Schedule:
    """The kernel's schedule after the config's trace; its function is called main. Raises as Template.schedule does."""
    if config.keys() != {"trace"} or not isinstance(config["trace"], str):
        raise ValueError("not the config of a trace")
    text = config["trace"]
    # The module must hold the kernel's own function: one derived from it, as by with_attr, TVM would change in place,
    # and the kernel's with it.
    module = tvm.IRModule({"main": kernel.function})
    gpu = target.kind == "cuda"
    if gpu and is_for_tensor_cores(text):
        schedule = replay_tensor_trace(kernel, target, text, module)
    else:
        schedule = Schedule(module, debug_mask="none")
        Trace.apply_json_to_schedule(parse_trace(text, gpu=gpu), schedule)
    _refuse_long_vectors(schedule.mod["main"])
    return schedule


def _refuse_long_vectors(function: tvm.tirx.PrimFunc) -> None:
    loops: list[tvm.tirx.For] = []
    tvm_ffi.structural_walk(function, (tvm.tirx.For, loops.append))
    for loop in loops:
        lanes = getattr(loop.extent, "value", None)
        if loop.kind == tvm.tirx.ForKind.VECTORIZED and (lanes is None or lanes > _MAX_LANES):
            raise ValueError(f"a vector of {loop.extent} lanes")


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    schedule = replay(kernel, target, config)
    function = without_round_trips(without_divided_differences(schedule.mod["main"]))
    return Scheduled(function.with_attr("tirx.is_scheduled", True), trace=schedule.trace)


def _guess(kernel: Kernel, _target: Target) -> Config:
    raise ValueError(f"no trace for {kernel.key} without a record")


TEMPLATE = Template(
    name="metaschedule",
    version=1,
    rank=None,
    fits=lambda _kernel, _target: True,
    configs=lambda _kernel, _target: [],
    guess=_guess,
    schedule=_schedule,
)
