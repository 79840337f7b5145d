"""MetaSchedule's ways to compute a product of float16 on tensor cores, and one of them by the trace that names it.

They are what TVM's rules for `wmma` make, with operands in static shared memory and sums in dynamic shared memory: in
one kind of memory TVM 0.27 lets sums take the place of operands that are done with, and fails on the pointer of
another type. Its rules for `mma` write PTX, which the emulated device has not, and its software pipeline loses the
fragments of `wmma`.

TVM's primitives for tensor cores are easily crashed by steps out of order. So a trace from a log is not replayed: it
has to be one of a kernel's ways, in all but the numbers sampled, and these alone are taken from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.schedule_rule import MultiLevelTilingTensorCore, ReuseType
from tvm.s_tir.schedule import SBlockRV, Trace

from tvmbridge.errors import is_interrupt
from tvmbridge.lowering import Kernel
from tvmbridge.lowering.precision import HALF
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules.gpu import tensor_cores
from tvmbridge.schedules.half_values import half_factors
from tvmbridge.schedules.tensor_intrinsics import declare_intrinsics, intrinsic_groups
from tvmbridge.schedules.trace import parse_decisions, render_trace
from tvmbridge.targets import Target

SET = "cuda-tensorcore"  # TVM's name for what is done to a candidate after the rules, and for mutations
_TENSORIZE = "meta_schedule.auto_tensorize"
_SEEDS = range(1, 17)  # tried in turn: with ragged extents, TVM's rules fail on about one draw of seven


def has_tensor_space(kernel: Kernel, target: Target) -> bool:
    """Whether the kernel is a product of float16 of which most of a fragment would be used."""
    template = tensor_cores.TEMPLATE
    return target.kind == "cuda" and template.fits(kernel, target) and template.pays(kernel, target)


def tensor_ways(kernel: Kernel, target: Target, module: tvm.IRModule) -> list[Schedule]:
    """The ways to schedule the module's main, which is a kernel that `has_tensor_space`; none where TVM finds none."""
    return _find_ways(kernel, target, module)[0]


def replay_tensor_trace(kernel: Kernel, target: Target, text: str, module: tvm.IRModule) -> Schedule:
    """The schedule of the module's main, the kernel, that has this trace; ValueError where none has."""
    if not has_tensor_space(kernel, target):
        raise ValueError("the kernel is not scheduled for tensor cores")
    steps, decisions = parse_decisions(text)
    found, postprocs = _find_ways(kernel, target, module)
    ways = [schedule.trace.simplified(remove_postproc=True) for schedule in found]
    way = next((way for way in ways if json.loads(render_trace(way.as_json()))[0] == steps), None)
    if way is None:
        raise ValueError("the trace is none of the ways in which this kernel is scheduled for tensor cores")
    schedule = Schedule(module, debug_mask="none")
    decided = {way.insts[index]: decision for index, decision in decisions.items()}
    Trace(way.insts, decided).apply_to_schedule(schedule, remove_postproc=True)
    schedule.enter_postproc()
    if not all(postproc.apply(schedule) for postproc in postprocs):
        raise ValueError("the numbers of the trace do not go together")
    if render_trace(schedule.trace.as_json()) != text:
        raise ValueError("the trace does not end as those of its kind do")
    return schedule


def _find_ways(
    kernel: Kernel, target: Target, module: tvm.IRModule
) -> tuple[list[Schedule], Sequence[ms.postproc.Postproc]]:
    """The ways, with numbers drawn, and what is done to each after them."""
    declare_intrinsics()
    rules = [_KeepHalf(half_factors(kernel.function)), _tiles_of_fragments(), *ms.ScheduleRule.create("cuda")]
    for seed in _SEEDS:
        space = ms.space_generator.PostOrderApply(sch_rules=rules, postprocs=SET, mutator_probs=SET)
        context = ms._ffi_api.TuneContext(
            module, tvm_target(target), space, None, kernel.name, 1, seed, lambda *_: None
        )
        ms._ffi_api.TuneContextInitialize(context)
        try:
            found = context.generate_design_space()
        except Exception as exc:  # of the numbers that it drew, some cannot be shown to be right
            if is_interrupt(exc):
                raise KeyboardInterrupt from exc
            continue
        return [each for each in found if _is_tensorized(each)], space.postprocs
    return [], []


def _is_tensorized(schedule: Schedule) -> bool:
    return any(step.kind.name == "Annotate" and step.attrs[0] == _TENSORIZE for step in schedule.trace.insts)


def _tiles_of_fragments() -> MultiLevelTilingTensorCore:
    """As TVM has it in its set, but for the kinds of memory, and without vectors of three halves."""
    return MultiLevelTilingTensorCore(
        intrin_groups=intrinsic_groups(),
        structure="SSSRRSRS",
        tile_binds=["blockIdx.y", "blockIdx.x", "threadIdx.y"],
        max_innermost_factor=4,
        vector_load_lens=[1, 2, 4, 8],
        reuse_read=ReuseType("must", [4], "shared"),
        reuse_write=ReuseType("must", [2], "shared.dyn"),
    )


@derived_object
class _KeepHalf(ms.schedule_rule.PyScheduleRule):
    """Factors that are float16 widened stay float16 until they are multiplied."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def _initialize_with_tune_context(self, _context: ms.TuneContext) -> None:
        pass

    def apply(self, schedule: Schedule, block: SBlockRV) -> list[Schedule]:
        """The schedule, with the block's buffer of float16 where it is such a factor."""
        if schedule.get(block).name_hint in self._names:
            schedule.unsafe_set_dtype(block, 0, HALF)
        return [schedule]

    def clone(self) -> _KeepHalf:
        """For another context."""
        return _KeepHalf(self._names)
