"""The algebra of index expressions: offsets into row-major buffers, coordinates, sums of steps, strides and ranges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import tvm
import tvm.sym
from tvm import tirx

from tvmbridge.schedules.loops.expressions import Values, number, substitute
from tvmbridge.schedules.loops.stages import Axis

# Axes with the part of each that is meant: its first place, and the one after its last.
Box = Sequence[tuple[Axis, int, int]]


def whole(axes: Sequence[Axis]) -> Box:
    """All of the axes."""
    return [(axis, 0, axis.extent) for axis in axes]


def analyzer(box: Box) -> tvm.sym.Analyzer:
    """An analyzer that knows where the axes of a box lie."""
    found = tvm.sym.Analyzer()
    for axis, first, end in box:
        found.bind(axis.var, tvm.ir.Range(number(first), number(end)))
    return found


def offset(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
    """The element that a load reads, counted from the start of its row-major buffer."""
    return flat_offset(load.source, load.indices)


def flat_offset(buffer: tvm.ir.Var, indices: Sequence[tvm.ir.Expr]) -> tvm.ir.Expr:
    """The element at these indices, counted from the start of the row-major buffer."""
    flat: tvm.ir.Expr = number(0)
    for index, extent in zip(indices, buffer.shape, strict=True):
        wide = index if str(index.ty.dtype) == "int64" else tirx.Cast("int64", index)
        flat = flat * number(int(extent)) + wide
    return flat


def at(buffer: tvm.ir.Var, offset: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    """The indices of the element at an offset: all in the last, which a row-major layout adds to 0 of the others."""
    return [*(number(0) for _ in buffer.shape[1:]), offset] if len(buffer.shape) else []


def unravel(index: tvm.ir.Expr, extents: Sequence[int]) -> list[tvm.ir.Expr]:
    """The row-major coordinates of an index."""
    found: list[tvm.ir.Expr] = []
    total = below = math.prod(extents)
    for extent in extents:
        below //= extent
        place = index if below == 1 else tirx.floordiv(index, number(below))
        outermost = below * extent == total
        found.append(number(0) if extent == 1 else place if outermost else tirx.floormod(place, number(extent)))
    return found


def coordinates(index: tvm.ir.Expr, axes: Sequence[Axis]) -> Values:
    """Where on each axis an index into nested loops over them stands, the last axis innermost."""
    places = unravel(index, [axis.extent for axis in axes])
    return {axis.var: place for axis, place in zip(axes, places, strict=True)}


@dataclasses.dataclass(frozen=True)
class Linear:
    """A sum: `steps[v] * v` for each variable, none of them 0, a constant, and terms that are neither."""

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
        if factor == 0:
            return Linear({}, 0, ())
        steps = {var: step * factor for var, step in self.steps.items()}
        return Linear(steps, self.constant * factor, tuple(other * factor for other in self.others))

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1


def linear(expr: tvm.ir.Expr) -> Linear:
    """An integer expression as a sum."""
    if isinstance(expr, tirx.IntImm):
        return Linear({}, int(expr), ())
    if isinstance(expr, tvm.ir.Var):
        return Linear({expr: 1}, 0, ())
    if isinstance(expr, tirx.Add):
        return linear(expr.a) + linear(expr.b)
    if isinstance(expr, tirx.Sub):
        return linear(expr.a) - linear(expr.b)
    if isinstance(expr, tirx.Mul) and isinstance(expr.b, tirx.IntImm):
        return linear(expr.a) * int(expr.b)
    if isinstance(expr, tirx.Mul) and isinstance(expr.a, tirx.IntImm):
        return linear(expr.b) * int(expr.a)
    return Linear({}, 0, (expr,))


def sum_over(expr: tvm.ir.Expr, axes: Sequence[Axis]) -> Linear | None:
    """The expression as a sum of steps of these axes and a constant; None where anything else takes part."""
    sum_ = linear(expr)
    return None if sum_.others or not sum_.steps.keys() <= {axis.var for axis in axes} else sum_


def range_of(sum_: Linear, box: Box) -> tuple[int, int] | None:
    """The least and the greatest value in the box; None where other terms take part."""
    if sum_.others:
        return None
    bounds = {axis.var: (first, end - 1) for axis, first, end in box}
    if any(var not in bounds for var in sum_.steps):
        return None
    ends = [sorted((step * bounds[var][0], step * bounds[var][1])) for var, step in sum_.steps.items()]
    return sum_.constant + sum(low for low, _ in ends), sum_.constant + sum(high for _, high in ends)


def step(expr: tvm.ir.Expr, axis: Axis, axes: Sequence[Axis]) -> int | None:
    """By how much the expression grows when the axis grows by one; None where that is not one number.

    axes: of the expression; within their extents the answer holds.
    """
    if axis.extent == 1:
        return 0
    sum_ = linear(expr)
    if not sum_.others:
        return sum_.steps.get(axis.var, 0)
    # The last step starts one below the end.
    box = [(other, 0, other.extent - other.var.same_as(axis.var)) for other in axes]
    difference = analyzer(box).simplify(substitute(expr, {axis.var: axis.var + number(1)}) - expr)
    return int(difference) if isinstance(difference, tirx.IntImm) else None


def depends(expr: tvm.ir.Expr, axis: Axis, axes: Sequence[Axis]) -> bool:
    """Whether the expression changes with the axis."""
    return step(expr, axis, axes) != 0
