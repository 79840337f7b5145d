"""Writes what a kernel on a GPU has besides loops: blocks of threads, memory that they share, and their barriers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.expressions import number

WARP = 32  # threads that execute together
MAX_THREADS = 1024  # of a block, on every architecture (CUDA C++ Programming Guide, "Technical Specifications")
SHARED_BYTES = 48 * 1024  # that a block may declare on every architecture

Body = Callable[[tvm.ir.Var, tvm.ir.Var], tirx.Stmt]


def launch(blocks: int, threads: int, body: Body) -> tirx.Stmt:
    """`body(block, thread)` in each of so many blocks of so many threads: one kernel of the device."""
    block, thread = tvm.ir.Var("block", "int64"), tvm.ir.Var("thread", "int64")
    # nvcc unrolls what it is told to (#pragma unroll): TVM would write out thousands of lines for it to read.
    left_to_nvcc = tirx.AttrStmt(number(0), "pragma_unroll_explicit", tirx.IntImm("int32", 0), body(block, thread))
    return _bound(block, blocks, "blockIdx.x", _bound(thread, threads, "threadIdx.x", left_to_nvcc))


def shared(size: int, dtype: str, name: str) -> tuple[tvm.ir.Var, tirx.Stmt]:
    """A flat buffer of a block's threads, and the statement that makes it for those behind it in a sequence."""
    return _buffer(size, dtype, name, "shared")


def registers(size: int, dtype: str, name: str) -> tuple[tvm.ir.Var, tirx.Stmt]:
    """A flat buffer of one thread: registers, where all its indices become constants once loops are unrolled."""
    return _buffer(size, dtype, name, "local")


def guarded(condition: tvm.ir.Expr | None, statement: tirx.Stmt) -> tirx.Stmt:
    """The statement, where the condition holds; None always holds."""
    return statement if condition is None else tirx.IfThenElse(condition, statement, None)


def all_of(conditions: Sequence[tvm.ir.Expr | None]) -> tvm.ir.Expr | None:
    """Whether all hold; None, which always holds, where there are none."""
    found: tvm.ir.Expr | None = None
    for condition in conditions:
        if condition is not None:
            found = condition if found is None else tirx.And(found, condition)
    return found


def _buffer(size: int, dtype: str, name: str, scope: str) -> tuple[tvm.ir.Var, tirx.Stmt]:
    buffer = tirx.decl_buffer([number(size)], dtype, name, scope=scope)
    return buffer, tirx.AllocBuffer(buffer)


def _bound(var: tvm.ir.Var, extent: int, tag: str, body: tirx.Stmt) -> tirx.Stmt:
    thread = tirx.IterVar(None, tvm.ir.Var(tag, "int64"), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(var, number(0), number(extent), tirx.ForKind.THREAD_BINDING, body, thread)
