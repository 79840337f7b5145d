"""The steps of a product on an NVIDIA GPU's tensor cores, declared to TVM's schedules: `wmma` of float16 into float32.

They are TVM's own, of `tvm.s_tir.tensor_intrin`: importing that declares 248 functions, each by parsing a script, in
16 to 23 s. Here the few that we let traces name are built without a parser. They have names of their own, because TVM
refuses to declare a name twice, and a user of both needs its module; a trace that is written down has TVM's names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import tvm
from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.s_tir.schedule import Instruction, Trace
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as script

from tvmbridge.lowering.precision import HALF, WHOLE

_SIDE = 16  # of a fragment, along rows, columns and depth
_OURS = "tvmbridge:"
_FACTORS, _SUMS = "shared", "shared.dyn"

Steps = tuple[tirx.PrimFunc, tirx.PrimFunc]  # what an intrinsic computes, and how


@dataclasses.dataclass(frozen=True)
class _Tile:
    """One fragment's worth of a buffer."""

    dtype: str
    scope: str

    def match(self, name: str, *, strided: bool) -> tvm.ir.Var:
        """A parameter of the function that is being built."""
        strides = [tvm.ir.Var(f"{name}{axis}", "int32") for axis in (1, 0)] if strided else None
        shape, parameter = (_SIDE, _SIDE), script.arg(name.lower(), script.handle())
        where = {"scope": self.scope, "align": 64, "offset_factor": _SIDE}
        tile = script.match_buffer(parameter, shape, self.dtype, strides=strides, **where)
        IRBuilder.name(name, tile)
        return tile


_LEFT, _RIGHT = _Tile(HALF, "wmma.matrix_a"), _Tile(HALF, "wmma.matrix_b")
_TOTAL = _Tile(WHOLE, "wmma.accumulator")


def _load(fragment: _Tile, order: str) -> Steps:
    """A fragment of a factor, from shared memory."""

    def call(source: tvm.ir.Var, target: tvm.ir.Var) -> tvm.ir.Expr:
        place, row = source.access_ptr("r", ptr_type=HALF), source.strides[0]
        return script.tvm_load_matrix_sync(target.data, *[_SIDE] * 3, _index(target), place, row, order, dtype="void")

    return _copy(_Tile(HALF, _FACTORS), fragment, call)


def _store() -> Steps:
    """A fragment of sums, to shared memory."""

    def call(source: tvm.ir.Var, target: tvm.ir.Var) -> tvm.ir.Expr:
        place, row = target.access_ptr("w", ptr_type=WHOLE), target.strides[0]
        order = "row_major"
        return script.tvm_store_matrix_sync(source.data, *[_SIDE] * 3, _index(source), place, row, order, dtype="void")

    return _copy(_TOTAL, _Tile(WHOLE, _SUMS), call)


def _copy(source: _Tile, target: _Tile, call: Callable[[tvm.ir.Var, tvm.ir.Var], tvm.ir.Expr]) -> Steps:
    def build(*, called: bool) -> tirx.PrimFunc:
        with _function() as made:
            read, written = source.match("A", strided=called), target.match("C", strided=called)
            with script.sblock("root"):
                script.reads(_all(read))
                script.writes(_all(written))
                if called:
                    script.evaluate(call(read, written))
                else:
                    with script.grid(_SIDE, _SIDE) as loops, script.sblock("copy"):
                        i, j = script.axis.remap("SS", loops)
                        script.buffer_store(written, read[i, j], [i, j])
        return made.get()

    return build(called=False), build(called=True)


def _fill() -> Steps:
    """Sums of zero."""

    def build(*, called: bool) -> tirx.PrimFunc:
        with _function() as made:
            sums = _TOTAL.match("C", strided=called)
            zero = tirx.const(0.0, WHOLE)
            with script.sblock("root"):
                script.reads()
                script.writes(_all(sums))
                if called:
                    filled = script.tvm_fill_fragment(sums.data, *[_SIDE] * 3, _index(sums), zero, dtype="void")
                    script.evaluate(filled)
                else:
                    with script.grid(_SIDE, _SIDE) as loops, script.sblock("init"):
                        i, j = script.axis.remap("SS", loops)
                        script.buffer_store(sums, zero, [i, j])
        return made.get()

    return build(called=False), build(called=True)


def _multiply(*, transposed: bool) -> Steps:
    """Sums and the product of two fragments, the right one as it is or transposed."""

    def build(*, called: bool) -> tirx.PrimFunc:
        with _function() as made:
            left, right = _LEFT.match("A", strided=called), _RIGHT.match("B", strided=called)
            sums = _TOTAL.match("C", strided=called)
            with script.sblock("root"):
                script.reads(_all(sums), _all(left), _all(right))
                script.writes(_all(sums))
                if called:
                    fragments = [(each.data, _index(each)) for each in (sums, left, right, sums)]
                    script.evaluate(script.tvm_mma_sync(*sum(fragments, ()), dtype="void"))
                else:
                    with script.grid(_SIDE, _SIDE, _SIDE) as loops, script.sblock(""):
                        i, j, k = script.axis.remap("SSR", loops)
                        factors = left[i, k], right[(j, k) if transposed else (k, j)]
                        a, b = (tirx.Cast(WHOLE, factor) for factor in factors)
                        script.buffer_store(sums, sums[i, j] + a * b, [i, j])
        return made.get()

    return build(called=False), build(called=True)


@contextlib.contextmanager
def _function() -> Iterator[IRBuilder]:
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_name("main")
        yield builder


def _all(tile: tvm.ir.Var) -> tvm.ir.Expr:
    return tile[0:_SIDE, 0:_SIDE]


def _index(fragment: tvm.ir.Var) -> tvm.ir.Expr:
    """Which of a buffer's fragments it is, counted along its rows."""
    row = fragment.strides[0]
    down, across = fragment.elem_offset // row // _SIDE, fragment.elem_offset % row // _SIDE
    return down * (row // _SIDE) + across


INTRINSICS: dict[str, Callable[[], Steps]] = {  # by TVM's names
    "wmma_fill_16x16x16_f32": _fill,
    "wmma_load_16x16x16_f16_a_shared": functools.partial(_load, _LEFT, "row_major"),
    "wmma_load_16x16x16_f16_b_shared": functools.partial(_load, _RIGHT, "row_major"),
    "wmma_load_16x16x16_f16_b_trans_shared": functools.partial(_load, _RIGHT, "col_major"),
    "wmma_sync_16x16x16_f16f16f32": functools.partial(_multiply, transposed=False),
    "wmma_sync_16x16x16_f16f16f32_trans": functools.partial(_multiply, transposed=True),
    "wmma_store_16x16x16_f32_shared_dyn": _store,
}


@functools.cache
def declare_intrinsics() -> None:
    """Declare them to TVM, once a process."""
    for name, build in INTRINSICS.items():
        TensorIntrin.register(our_name(name), *build())


def our_name(name: str) -> str:
    """What an intrinsic of TVM's name is called here."""
    return _OURS + name


def tvm_name(text: str) -> str:
    """A text of a trace, with TVM's name where it names one of our intrinsics."""
    return text.replace(_OURS, "")


def intrinsic_groups() -> list[dict[str, str]]:
    """For each way that the right factor may lie, the intrinsics of a product, as MetaSchedule's rule wants them."""
    either = {
        "init": "wmma_fill_16x16x16_f32",
        "load_a": "wmma_load_16x16x16_f16_a_shared",
        "store": "wmma_store_16x16x16_f32_shared_dyn",
    }
    straight = {"load_b": "wmma_load_16x16x16_f16_b_shared", "compute": "wmma_sync_16x16x16_f16f16f32"}
    transposed = {"load_b": "wmma_load_16x16x16_f16_b_trans_shared", "compute": "wmma_sync_16x16x16_f16f16f32_trans"}
    return [{role: our_name(name) for role, name in (either | right).items()} for right in (straight, transposed)]


def with_tvm_names(trace: Trace) -> Trace:
    """The trace with TVM's names, as TVM's own programs can replay it."""

    def renamed(operand: object) -> object:
        return tvm_name(operand) if isinstance(operand, str) else operand

    steps, decisions = [], {}
    for step in trace.insts:
        named = Instruction(step.kind, [*map(renamed, step.inputs)], [*map(renamed, step.attrs)], step.outputs)
        steps.append(named)
        if (decision := trace.get_decision(step)) is not None:
            decisions[named] = decision
    return Trace(steps, decisions)
