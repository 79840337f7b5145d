"""Cuts the depth of a product into steps: what a block of threads loads, multiplies and adds at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import tvm

from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.indices import coordinates
from tvmbridge.schedules.loops.stages import Axis

_WORTH_DIVISIONS = 0.8  # steps left, as a part of those before, for which more axes are taken apart by divisions


@dataclasses.dataclass(frozen=True)
class Depth:
    """The reduction axes as steps of `size` terms.

    window: axes of which a step has one place each. inner: the axes behind those, fused: a step is a run of them.
    """

    window: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    size: int

    @property
    def terms(self) -> int:
        """Of the inner axes."""
        return math.prod(axis.extent for axis in self.inner)

    @property
    def steps(self) -> int:
        """In all."""
        return math.prod(axis.extent for axis in self.window) * self._runs

    @property
    def _runs(self) -> int:
        return -(-self.terms // self.size)

    def at(self, step: tvm.ir.Expr, term: tvm.ir.Expr) -> Values:
        """Where on each axis a step's term stands."""
        run = Axis(tvm.ir.Var("run", "int64"), self._runs)
        values = coordinates(step, [*self.window, run])
        values.update(coordinates(values.pop(run.var) * number(self.size) + term, self.inner))
        return values

    def is_there(self, step: tvm.ir.Expr, term: tvm.ir.Expr) -> tvm.ir.Expr | None:
        """Whether a step has this term: of the last run some may be missing; None where none ever is."""
        if self.terms % self.size == 0:
            return None
        run = Axis(tvm.ir.Var("run", "int64"), self._runs)
        return coordinates(step, [*self.window, run])[run.var] * number(self.size) + term < number(self.terms)


def cut_depth(axes: Sequence[Axis], size: int) -> Depth:
    """Steps along the last axis alone, unless its runs are so ragged that fusing more axes saves many steps.

    A fused axis costs a division for each element that is loaded.
    """
    axes = tuple(axes) or (Axis(tvm.ir.Var("term", "int64"), 1),)
    best = Depth(axes[:-1], axes[-1:], size)
    for first in range(len(axes) - 2, -1, -1):
        wider = Depth(axes[:first], axes[first:], size)
        if wider.steps < best.steps * _WORTH_DIVISIONS:
            best = wider
    return best
