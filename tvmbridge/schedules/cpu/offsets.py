"""Offsets into row-major buffers, and the integer expressions that they are, as sums of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.emit import number
from tvmbridge.schedules.cpu.stages import Axis

# Axes with the part of each that is meant: its first place, and the one after its last.
Box = Sequence[tuple[Axis, int, int]]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A sum: `steps[v] * v` for each variable, a constant, and terms that are neither."""

    steps: Mapping[tvm.ir.Var, int]
    constant: int
    others: tuple[tvm.ir.Expr, ...]

    def __add__(self, other: Linear) -> Linear:
        steps = dict(self.steps)
        for var, step in other.steps.items():
            steps[var] = steps.get(var, 0) + step
        steps = {var: step for var, step in steps.items() if step}
        return Linear(steps, self.constant + other.constant, self.others + other.others)

    def __mul__(self, factor: int) -> Linear:
        steps = {var: step * factor for var, step in self.steps.items()}
        return Linear(steps, self.constant * factor, tuple(other * factor for other in self.others))


def linear(expr: tvm.ir.Expr) -> Linear:
    """An integer expression as a sum."""
    if isinstance(expr, tirx.IntImm):
        return Linear({}, int(expr), ())
    if isinstance(expr, tvm.ir.Var):
        return Linear({expr: 1}, 0, ())
    if isinstance(expr, tirx.Add):
        return linear(expr.a) + linear(expr.b)
    if isinstance(expr, tirx.Sub):
        return linear(expr.a) + linear(expr.b) * -1
    if isinstance(expr, tirx.Mul) and isinstance(expr.b, tirx.IntImm):
        return linear(expr.a) * int(expr.b)
    if isinstance(expr, tirx.Mul) and isinstance(expr.a, tirx.IntImm):
        return linear(expr.b) * int(expr.a)
    return Linear({}, 0, (expr,))


def at(buffer: tvm.ir.Var, offset: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    """The indices of the element at an offset: all in the last, which a row-major layout adds to 0 of the others."""
    return [*(number(0) for _ in buffer.shape[1:]), offset] if len(buffer.shape) else []


def offset_of(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
    """The offset of a load in a piece."""
    return load.indices[-1] if len(load.indices) else number(0)


def range_of(sum_: Linear, box: Box) -> tuple[int, int] | None:
    """The least and the greatest value in the box; None where other terms take part."""
    if sum_.others:
        return None
    bounds = {axis.var: (first, end - 1) for axis, first, end in box}
    if any(var not in bounds for var in sum_.steps):
        return None
    ends = [sorted((step * bounds[var][0], step * bounds[var][1])) for var, step in sum_.steps.items()]
    return sum_.constant + sum(low for low, _ in ends), sum_.constant + sum(high for _, high in ends)


def has_conditions(value: tvm.ir.Expr) -> bool:
    """Whether some of the value is computed, and what it reads is there, only under a condition."""
    found: list[tvm.ir.Call] = []
    tvm_ffi.structural_walk(value, (tvm.ir.Call, lambda call: found.append(call)))
    return any(is_condition(call) for call in found)


def is_condition(call: tvm.ir.Call) -> bool:
    """Whether a call is the choice between two values of which only one is computed."""
    return getattr(call.op, "name", "").endswith(".if_then_else")
