"""Reads a kernel with reductions as the steps of one row: rows are what all of its stages are independent over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.expressions import Values, loads, loads_of, number, substitute, variables
from tvmbridge.schedules.loops.indices import linear
from tvmbridge.schedules.loops.stages import Axis, Stage, inline, read_stages
from tvmbridge.schedules.reading.row_steps import (
    Combine,
    Rows,
    Step,
    merged,
    oriented,
    simplifier,
    with_indices,
)

_COSTLY = 8  # operations from which an element that several stages read is computed once and kept
# What leaves the result as it is when it is combined with it once more; of max and min any value may be.
_NEUTRAL: dict[type, int | None] = {tirx.Add: 0, tirx.Mul: 1, tirx.Max: None, tirx.Min: None}


def read_rows(function: tirx.PrimFunc) -> Rows | None:
    """The kernel as rows; None where it is not reductions over whole axes whose results its other stages read."""
    stages = read_stages(function)
    if stages is None or not any(stage.reduction for stage in stages):
        return None
    axes = [axis for stage in stages for axis in stage.axes]
    if any(axis.extent == 0 or str(axis.var.ty.dtype) != "int64" for axis in axes):
        return None

    def is_shared(stage: Stage) -> bool:
        readings = [load for other in stages for load in loads_of(other.value, stage.buffer)]
        return len(readings) > 1 and operations(stage.value) >= _COSTLY

    for keep in (is_shared, lambda _stage: False):
        read = [_plain(stage) for stage in inline(stages, keep)]
        rows = _rows([_with_groups(stage, read) for stage in read])
        if rows is not None:
            return rows
    return None


def _plain(stage: Stage) -> Stage:
    """The stage with variables of its own, without axes of one step, and with its indices simplified."""
    axes = [axis for axis in stage.axes if axis.extent > 1]
    values: Values = {axis.var: number(0) for axis in stage.axes}
    fresh = {axis.var: Axis(tvm.ir.Var(axis.var.name, "int64"), axis.extent) for axis in axes}
    values |= {var: axis.var for var, axis in fresh.items()}
    simplify = simplifier(tuple(fresh.values()))
    return dataclasses.replace(
        stage,
        spatial=tuple(fresh[axis.var] for axis in stage.spatial if axis.extent > 1),
        reduction=tuple(fresh[axis.var] for axis in stage.reduction if axis.extent > 1),
        indices=tuple(simplify(substitute(index, values)) for index in stage.indices),
        value=with_indices(substitute(stage.value, values), simplify),
    )


def _with_groups(stage: Stage, stages: Sequence[Stage]) -> Stage:
    """The stage with an axis split in two where it reads one element of another stage for each group along the axis.

    So a group norm reads the sums of its groups of channels behind a reshape.
    """
    groups = {
        index.a: int(index.b)
        for load in loads(stage.value)
        if any(load.source.same_as(other.buffer) for other in stages)
        for index in load.indices
        if isinstance(index, tirx.FloorDiv) and isinstance(index.a, tvm.ir.Var) and isinstance(index.b, tirx.IntImm)
    }
    spatial: list[Axis] = []
    values: Values = {}
    for axis in stage.spatial:
        size = groups.get(axis.var, 1)
        if size == 1 or axis.extent % size:
            spatial.append(axis)
            continue
        group, member = (tvm.ir.Var(f"{axis.var.name}_{part}", "int64") for part in ("group", "member"))
        spatial += [Axis(group, axis.extent // size), Axis(member, size)]
        values[axis.var] = group * number(size) + member
    simplify = simplifier([*spatial, *stage.reduction])
    return dataclasses.replace(
        stage,
        spatial=tuple(spatial),
        indices=tuple(simplify(substitute(index, values)) for index in stage.indices),
        value=with_indices(substitute(stage.value, values), simplify),
    )


def _rows(stages: Sequence[Stage]) -> Rows | None:
    found = _row_axes(stages)
    if found is None:
        return None
    axes, row_of = found
    rows = {axis.var for axis in axes}
    stages = [_renamed(stage, row_of) for stage in stages]
    held = {stage.buffer: _RowBuffer(stage, rows) for stage in stages if not stage.output}
    steps = []
    for stage in stages:
        step = _step(stage, rows, held)
        if step is None:
            return None
        steps.append(step)
    return oriented(*merged(axes, [_with_reciprocal(step, steps) for step in steps]))


def _row_axes(stages: Sequence[Stage]) -> tuple[tuple[Axis, ...], dict[tvm.ir.Var, tvm.ir.Var]] | None:
    """The axes that all stages share, and for each stage's variables of them the common one.

    Two axes are one where a stage reads another's element at a plain variable: union-find over the reads.
    """
    parent: dict[tvm.ir.Var, tvm.ir.Var] = {}
    broken: set[tvm.ir.Var] = set()

    def root(var: tvm.ir.Var) -> tvm.ir.Var:
        while var in parent:
            var = parent[var]
        return var

    for reader in stages:
        variables = {axis.var for axis in reader.axes}
        for load in loads(reader.value):
            producer = next((s for s in stages if s is not reader and s.buffer.same_as(load.source)), None)
            for stored, read in zip(producer.indices if producer else (), load.indices, strict=bool(producer)):
                if not isinstance(stored, tvm.ir.Var):
                    if not isinstance(stored, tirx.IntImm):
                        return None
                elif not isinstance(read, tvm.ir.Var) or read not in variables:
                    broken.add(stored)
                elif not root(stored).same_as(root(read)):
                    parent[root(stored)] = root(read)
    spatial = [{root(axis.var): axis.var for axis in stage.spatial} for stage in stages]
    reduced = {root(axis.var) for stage in stages for axis in stage.reduction}
    broken = {root(var) for var in broken}
    last = stages[-1]
    shared = tuple(
        axis
        for axis in last.spatial
        if (kind := root(axis.var)) not in reduced | broken
        and all(kind in own for own in spatial)
        and all(sum(root(other.var).same_as(kind) for other in stage.spatial) == 1 for stage in stages)
    )
    return shared, {own[root(axis.var)]: axis.var for axis in shared for own in spatial}


def _renamed(stage: Stage, names: Mapping[tvm.ir.Var, tvm.ir.Var]) -> Stage:
    return dataclasses.replace(
        stage,
        spatial=tuple(Axis(names.get(axis.var, axis.var), axis.extent) for axis in stage.spatial),
        indices=tuple(substitute(index, names) for index in stage.indices),
        value=substitute(stage.value, names),
    )


class _RowBuffer:
    """What holds one row of a stage's buffer: its inner axes only."""

    def __init__(self, stage: Stage, rows: set[tvm.ir.Var]) -> None:
        extents = {axis.var: axis.extent for axis in stage.spatial if axis.var not in rows}
        self._kept = [place for place, index in enumerate(stage.indices) if index in extents]
        shape = [number(extents[stage.indices[place]]) for place in self._kept]
        self.buffer = tirx.decl_buffer(shape, str(stage.buffer.dtype), stage.name)

    def indices(self, indices: Sequence[tvm.ir.Expr]) -> tuple[tvm.ir.Expr, ...]:
        return tuple(indices[place] for place in self._kept)


def _step(stage: Stage, rows: set[tvm.ir.Var], held: Mapping[tvm.ir.Var, _RowBuffer]) -> Step | None:
    inner = tuple(axis for axis in stage.spatial if axis.var not in rows)
    combine, value = None, stage.value
    if stage.init is not None:
        found = _combined(stage)
        if found is None or inner or not _is_whole(stage, found[1]):
            return None
        combine, value = found

    def moved(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        holder = held.get(load.source)
        return load if holder is None else tirx.BufferLoad(holder.buffer, list(holder.indices(load.indices)))

    holder = held.get(stage.buffer)
    return Step(
        inner=inner,
        reduced=stage.reduction,
        buffer=stage.buffer if holder is None else holder.buffer,
        indices=stage.indices if holder is None else holder.indices(stage.indices),
        held=holder is not None,
        combine=combine,
        init=stage.init,
        value=tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, moved)),
    )


def _with_reciprocal(step: Step, steps: Sequence[Step]) -> Step:
    """The step with x / sum(x) as x · (1 / sum(x)), one division a row: a sum of what it divides is not near overflow.

    That is how softmax divides, whose sums are 1 or more; of 0 / 0 and infinity / infinity both forms give NaN.
    """
    summed = [
        (other.buffer, other.value.source)
        for other in steps
        if other.held and other.combine is tirx.Add and isinstance(other.value, tvm.ir.TensorLoad)
    ]

    def multiplied(node: tirx.Div) -> tvm.ir.Expr:
        if not isinstance(node.a, tvm.ir.TensorLoad) or not isinstance(node.b, tvm.ir.TensorLoad):
            return node
        dtype = str(node.ty.dtype)
        normalised = any(
            node.b.source.same_as(total) and node.a.source.same_as(terms) for total, terms in summed
        ) and dtype.startswith("float")
        return node.a * (tirx.FloatImm(dtype, 1.0) / node.b) if normalised else node

    return dataclasses.replace(step, value=tvm_ffi.structural_map(step.value, (tirx.Div, multiplied)))


def _combined(stage: Stage) -> tuple[Combine, tvm.ir.Expr] | None:
    """How the stage accumulates and what; None where its terms may not be combined in another order."""
    kind = type(stage.value)
    if kind not in _NEUTRAL or not isinstance(stage.init, (tirx.IntImm, tirx.FloatImm)):
        return None
    if _NEUTRAL[kind] is not None and stage.init.value != _NEUTRAL[kind]:
        return None
    before, term = stage.value.a, stage.value.b
    if not isinstance(before, tvm.ir.TensorLoad) or not before.source.same_as(stage.buffer):
        return None
    return None if loads_of(term, stage.buffer) else (kind, term)


def _is_whole(stage: Stage, term: tvm.ir.Expr) -> bool:
    """Whether the stage reduces whole axes: no window slides over them, and it is no product of two tensors."""
    spatial, reduced = [{axis.var: axis.extent for axis in axes} for axes in (stage.spatial, stage.reduction)]
    own = []
    for load in loads(term):
        used = set()
        for index in load.indices:
            if isinstance(index, tirx.IntImm):
                continue
            here = {var for var in variables(index) if var in spatial or var in reduced}
            used |= here
            if here & spatial.keys() and here & reduced.keys() and not _is_split(index, spatial, reduced):
                return False
        if used & reduced.keys():
            own.append(used & spatial.keys())
    return not any(left - right and right - left for left in own for right in own)


def _is_split(index: tvm.ir.Expr, spatial: Mapping[tvm.ir.Var, int], reduced: Mapping[tvm.ir.Var, int]) -> bool:
    """Whether the index is that of an axis split into spatial and reduced parts: each is met once, by one of them."""
    extents = {**spatial, **reduced}
    sum_ = linear(index)
    if sum_.others or sum_.constant:
        return False
    met = 1
    for var, factor in sorted(sum_.steps.items(), key=lambda item: item[1]):
        if factor != met:
            return False
        met *= extents[var]
    return True
