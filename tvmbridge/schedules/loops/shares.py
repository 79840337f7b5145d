"""Writes loops over axes, all of them or the part that is one task's: equal shares of consecutive steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.emit import Body, loop, nest, span
from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.indices import coordinates
from tvmbridge.schedules.loops.stages import Axis

# (task, how many there are): whose share is to be written.
Share = tuple[tvm.ir.Expr, int]

SHARES_A_TASK = 8  # outer axes are counted together until a task has so many steps that shares are about equal


def shared(steps: int, share: Share, body: Body) -> tirx.Stmt:
    """`body` for the steps that are one task's."""
    task, tasks = share
    if steps % tasks == 0:
        own = steps // tasks
        return loop(own, lambda i: body(task * own + i))
    start, end = (tirx.floordiv((task + i) * steps, number(tasks)) for i in (0, 1))
    return span(start, end, body)


def shared_nest(axes: Sequence[Axis], body: Callable[[Values], tirx.Stmt], share: Share | None) -> tirx.Stmt:
    """Loops over the axes, the first outermost, or one task's share of their steps; `body` is given the places."""
    if share is None:
        return nest(axes, body)
    if not axes:
        return only_first(share, body({}))
    tasks = share[1]
    together, steps = 0, 1
    while together < len(axes) and (together == 0 or (steps < tasks * SHARES_A_TASK and steps % tasks)):
        steps *= axes[together].extent
        together += 1

    def step(index: tvm.ir.Expr) -> tirx.Stmt:
        outer = coordinates(index, axes[:together])
        return nest(axes[together:], lambda inner: body({**outer, **inner}))

    return shared(steps, share, step)


def only_first(share: Share | None, statement: tirx.Stmt) -> tirx.Stmt:
    """What cannot be shared, done by one task."""
    return statement if share is None else tirx.IfThenElse(share[0].equal(number(0)), statement, None)
