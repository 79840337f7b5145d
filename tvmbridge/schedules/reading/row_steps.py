"""What a kernel is that works row by row: its steps, and along which axes its loops and its vectors go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import Values, loads, substitute
from tvmbridge.schedules.loops.indices import analyzer, coordinates, flat_offset, whole
from tvmbridge.schedules.loops.indices import step as growth
from tvmbridge.schedules.loops.stages import Axis

Access = tuple[tvm.ir.Var, tuple[tvm.ir.Expr, ...]]  # (buffer, indices)
Combine = Callable[[tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]


@dataclasses.dataclass(frozen=True)
class Step:
    """`buffer[indices] = value` for every point of `inner`, in one row.

    Where `combine` is set, the step starts from `init` and combines the values of every point of `reduced`; its `inner`
    is empty. held: the buffer holds one row, for later steps: it is indexed by inner axes only.
    """

    inner: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    buffer: tvm.ir.Var
    indices: tuple[tvm.ir.Expr, ...]
    held: bool
    combine: Combine | None
    init: tvm.ir.Expr | None
    value: tvm.ir.Expr

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What one row of the step loops over."""
        return self.inner + self.reduced

    @property
    def accesses(self) -> list[Access]:
        """Every (buffer, indices) that the step loads or stores."""
        return [(self.buffer, self.indices), *((load.source, tuple(load.indices)) for load in loads(self.value))]


@dataclasses.dataclass(frozen=True)
class Rows:
    """A kernel as `steps` done in order for every point of `axes`.

    across: the row axis that is contiguous in memory, where most accesses are: vectors then hold as many rows, and the
    reductions run across them; None where the reduced axes are contiguous, so that vectors lie along a row.
    """

    axes: tuple[Axis, ...]
    steps: tuple[Step, ...]
    across: Axis | None


def simplifier(axes: Sequence[Axis]) -> Callable[[tvm.ir.Expr], tvm.ir.Expr]:
    """What simplifies an index of these axes."""
    return analyzer(whole(axes)).simplify


def with_indices(expr: tvm.ir.Expr, change: Callable[[tvm.ir.Expr], tvm.ir.Expr]) -> tvm.ir.Expr:
    """The expression with every index that it loads at changed."""

    def changed(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        return tirx.BufferLoad(load.source, [change(index) for index in load.indices])

    return tvm_ffi.structural_map(expr, (tvm.ir.TensorLoad, changed))


def stride(step: Step, access: Access, axis: Axis, rows: Sequence[Axis]) -> int | None:
    """How many elements apart two neighbours on the axis lie in a buffer; None where it is not always the same."""
    return growth(flat_offset(*access), axis, [*rows, *step.axes])


def merged(axes: Sequence[Axis], steps: Sequence[Step]) -> tuple[tuple[Axis, ...], list[Step]]:
    """Neighbouring axes made one wherever every access goes through both as through one."""

    def joined(group: Sequence[Axis], within: Sequence[Step]) -> list[list[Axis]]:
        groups: list[list[Axis]] = []
        for axis in group:
            if groups and all(
                (outer := stride(step, access, groups[-1][-1], axes)) is not None
                and (inner := stride(step, access, axis, axes)) is not None
                and outer == inner * axis.extent
                for step in within
                for access in step.accesses
            ):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        return groups

    row_axes, row_values = _merge(joined(axes, steps))
    result = []
    for step in steps:
        inner, inner_values = _merge(joined(step.inner, [step]))
        reduced, reduced_values = _merge(joined(step.reduced, [step]))
        values = {**row_values, **inner_values, **reduced_values}
        simplify = simplifier([*row_axes, *inner, *reduced])
        result.append(
            dataclasses.replace(
                step,
                inner=inner,
                reduced=reduced,
                indices=tuple(simplify(substitute(index, values)) for index in step.indices),
                value=with_indices(substitute(step.value, values), simplify),
            )
        )
    return row_axes, result


def _merge(groups: Sequence[Sequence[Axis]]) -> tuple[tuple[Axis, ...], Values]:
    axes: list[Axis] = []
    values: Values = {}
    for group in groups:
        if len(group) == 1:
            axes.append(group[0])
            continue
        joined = Axis(tvm.ir.Var(group[-1].var.name, "int64"), math.prod(axis.extent for axis in group))
        axes.append(joined)
        values |= coordinates(joined.var, group)
    return tuple(axes), values


def oriented(axes: tuple[Axis, ...], steps: Sequence[Step]) -> Rows:
    """Decide along which axes vectors lie, by the kernel's large tensors; each step's own such axis goes last."""
    held = {step.buffer for step in steps if step.held}

    def contiguous(step: Step, axis: Axis) -> int:
        tensors = [access for access in step.accesses if access[0] not in held]
        return sum(
            math.prod(int(extent) for extent in access[0].shape)
            for access in tensors
            if stride(step, access, axis, axes) == 1
        )

    def with_last(step: Step, own: tuple[Axis, ...]) -> tuple[Axis, ...]:
        best = max(reversed(own), key=lambda axis: contiguous(step, axis), default=None)
        return (*(axis for axis in own if axis is not best), *([best] if best else []))

    steps = [
        dataclasses.replace(step, inner=with_last(step, step.inner), reduced=with_last(step, step.reduced))
        for step in steps
    ]
    along = sum(max((contiguous(step, axis) for axis in step.axes), default=0) for step in steps)
    across = max(axes, key=lambda axis: sum(contiguous(step, axis) for step in steps), default=None)
    chosen = across is not None and sum(contiguous(step, across) for step in steps) > along
    return Rows(axes, tuple(steps), across if chosen else None)
