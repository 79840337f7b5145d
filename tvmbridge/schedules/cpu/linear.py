"""What an index expression does as one variable steps: how a template sees strides."""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.emit import number
from tvmbridge.schedules.cpu.stages import Axis, substitute


def offset(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
    """The element that a load reads, counted from the start of its row-major buffer."""
    flat: tvm.ir.Expr = number(0)
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        flat = flat * number(int(extent)) + index
    return flat


def step(expr: tvm.ir.Expr, axis: Axis, bounds: tuple[Axis, ...]) -> int | None:
    """By how much the expression grows when the axis grows by one; None where that is not one number.

    bounds: the axes of the expression; within their extents the answer holds.
    """
    if axis.extent == 1:
        return 0
    analyzer = tvm.sym.Analyzer()
    for other in bounds:
        # The last step starts one below the end.
        last = other.extent - 1 if other.var.same_as(axis.var) else other.extent
        analyzer.bind(other.var, tvm.ir.Range(number(0), number(last)))
    difference = analyzer.simplify(substitute(expr, {axis.var: axis.var + number(1)}) - expr)
    return int(difference) if isinstance(difference, tirx.IntImm) else None


def depends(expr: tvm.ir.Expr, axis: Axis, bounds: tuple[Axis, ...]) -> bool:
    """Whether the expression changes with the axis."""
    return step(expr, axis, bounds) != 0
