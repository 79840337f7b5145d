"""Writes loops: the few statements that a template's kernel is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.stages import Axis

Body = Callable[[tvm.ir.Var], tirx.Stmt]


def loop(extent: int, body: Body, kind: tirx.ForKind = tirx.ForKind.SERIAL, name: str = "i") -> tirx.Stmt:
    """`for name in range(extent): body(name)`; a serial loop of one step is only its body."""
    if extent == 1 and kind != tirx.ForKind.PARALLEL:
        return body(number(0))
    var = tvm.ir.Var(name, "int64")
    return tirx.For(var, number(0), number(extent), kind, body(var))


def nest(axes: Sequence[Axis], body: Callable[[Values], tirx.Stmt]) -> tirx.Stmt:
    """Serial loops over the axes around `body(their values)`, the first axis outermost."""
    if not axes:
        return body({})
    first, *rest = axes
    return loop(first.extent, lambda i: nest(rest, lambda values: body({first.var: i, **values})), name=first.var.name)


def block(
    index: tvm.ir.Expr, size: int, total: int, body: Callable[[tvm.ir.Expr, tvm.ir.Expr], tirx.Stmt]
) -> tirx.Stmt:
    """`body(i, index * size + i)` for one block of `size` steps, of which the last one may have fewer."""
    if total % size == 0:
        return loop(size, lambda i: body(i, index * number(size) + i))
    var = tvm.ir.Var("i", "int64")
    extent = tirx.min(number(size), number(total) - index * number(size))
    return tirx.For(var, number(0), extent, tirx.ForKind.SERIAL, body(var, index * number(size) + var))


def span(start: tvm.ir.Expr, end: tvm.ir.Expr, body: Body, name: str = "i") -> tirx.Stmt:
    """`for name in range(start, end): body(name)`, where the run decides the ends."""
    # Counted from 0: TVM shifts a loop that starts elsewhere, and forgets the extents of the loops in it.
    var = tvm.ir.Var(name, "int64")
    return tirx.For(var, number(0), end - start, tirx.ForKind.SERIAL, body(start + var))


def parallel(extent: int, body: Body) -> tirx.Stmt:
    """A loop whose steps are dealt out to the threads, each taking consecutive ones."""
    return loop(extent, body, tirx.ForKind.PARALLEL, "task")


def unrolled(extent: int, body: Body) -> tirx.Stmt:
    """A loop that is written out: buffers indexed by its variable can stay in registers."""
    return loop(extent, body, tirx.ForKind.UNROLLED, "u")


def vectorized(lanes: int, body: Body) -> tirx.Stmt:
    """A loop that becomes one vector operation for each operation of its body."""
    return loop(lanes, body, tirx.ForKind.VECTORIZED, "lane")


def sequence(*statements: tirx.Stmt | None) -> tirx.Stmt:
    """One statement after another; None is nothing."""
    # TVM drops statements without effect from a sequence, and then refuses one that is left with a single statement.
    present = [statement for statement in statements if statement is not None and not _is_nothing(statement)]
    if not present:
        return tirx.Evaluate(0)
    return present[0] if len(present) == 1 else tirx.SeqStmt(present)


def _is_nothing(statement: tirx.Stmt) -> bool:
    return isinstance(statement, tirx.Evaluate) and isinstance(statement.value, tirx.IntImm)


def store(buffer: tvm.ir.Var, indices: Sequence[tvm.ir.Expr], value: tvm.ir.Expr) -> tirx.Stmt:
    """`buffer[indices] = value`."""
    return tirx.BufferStore(buffer, value, list(indices))


def scratch(shape: Sequence[int], dtype: str, name: str, scope: str = "global") -> tuple[tvm.ir.Var, tirx.Stmt]:
    """A buffer of one task, and the statement that makes it for the statements behind it in a sequence.

    Of scope "global" TVM keeps what is under 1 KiB on the stack and, where all its indices become constants, in
    registers; larger buffers, and those of any other scope, "local" among them, are taken from the heap at each step.
    """
    buffer = tirx.decl_buffer([number(extent) for extent in shape], dtype, name, scope=scope)
    return buffer, tirx.AllocBuffer(buffer)


def with_body(function: tirx.PrimFunc, body: tirx.Stmt) -> tirx.PrimFunc:
    """The function with new loops in place of its own."""
    # A root block, because TVM, looking for reshapes in a network, takes functions for blocks.
    root = SBlockRealize([], True, SBlock([], [], [], "root", body))
    return tirx.PrimFunc(function.params, root, function.ret_type, function.attrs).with_attr("tirx.is_scheduled", True)
