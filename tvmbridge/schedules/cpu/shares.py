"""Writes loops over axes, all of them or the part that is one task's: equal shares of consecutive steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.emit import loop, number, span
from tvmbridge.schedules.cpu.stages import Axis

# (task, how many there are): whose share is to be written.
Share = tuple[tvm.ir.Expr, int]
Places = Mapping[tvm.ir.Var, tvm.ir.Expr]

SHARES_A_TASK = 8  # outer axes are counted together until a task has so many steps that shares are about equal


def nest(axes: Sequence[Axis], body: Callable[[Places], tirx.Stmt], share: Share | None) -> tirx.Stmt:
    """Loops over the axes, the first outermost; `body` is given the place on each."""
    if share is None:
        return _serial(axes, body, {})
    if not axes:
        return only_first(share, body({}))
    task, tasks = share
    together, steps = 0, 1
    while together < len(axes) and (together == 0 or (steps < tasks * SHARES_A_TASK and steps % tasks)):
        steps *= axes[together].extent
        together += 1

    def step(index: tvm.ir.Expr) -> tirx.Stmt:
        places: dict[tvm.ir.Var, tvm.ir.Expr] = {}
        below = steps
        for axis in axes[:together]:
            below //= axis.extent
            place = index if below == 1 else tirx.floordiv(index, number(below))
            places[axis.var] = place if below * axis.extent == steps else tirx.floormod(place, number(axis.extent))
        return _serial(axes[together:], body, places)

    if steps % tasks == 0:
        share_steps = steps // tasks
        return loop(share_steps, lambda i: step(task * share_steps + i))
    start, end = (tirx.floordiv((task + i) * steps, number(tasks)) for i in (0, 1))
    return span(start, end, step)


def only_first(share: Share | None, statement: tirx.Stmt) -> tirx.Stmt:
    """What cannot be shared, done by one task."""
    return statement if share is None else tirx.IfThenElse(share[0].equal(number(0)), statement, None)


def _serial(axes: Sequence[Axis], body: Callable[[Places], tirx.Stmt], places: Places) -> tirx.Stmt:
    if not axes:
        return body(places)
    return loop(
        axes[0].extent, lambda var: _serial(axes[1:], body, {**places, axes[0].var: var}), name=axes[0].var.name
    )
