"""A kernel read as stages: what each computes for one element, ready to be inlined and written out in new loops.

TVM's schedule primitives transform the loops that a kernel came with; where a template wants loops of its own making
(peeled or overlapping tails, two tile sizes, a scratch copy) it is simpler to take the expressions and write the loops.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from tvmbridge.schedules.loops.expressions import (
    Values,
    constant,
    loads_of,
    number,
    replace_loads,
    substitute,
)

_SPATIAL, _REDUCTION = 0, 2


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a stage: `var` runs over [0, extent)."""

    var: tvm.ir.Var
    extent: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """`buffer[indices] = value` for every point of the spatial axes.

    Where there are reduction axes, `init` is stored first, and `value` reads the element that it updates.
    output: whether the buffer is a parameter of the kernel.
    """

    name: str
    spatial: tuple[Axis, ...]
    reduction: tuple[Axis, ...]
    buffer: tvm.ir.Var
    indices: tuple[tvm.ir.Expr, ...]
    init: tvm.ir.Expr | None
    value: tvm.ir.Expr
    output: bool

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All of them."""
        return self.spatial + self.reduction

    @property
    def size(self) -> int:
        """How many elements it stores."""
        return math.prod(axis.extent for axis in self.spatial)


def read_stages(function: tirx.PrimFunc) -> tuple[Stage, ...] | None:
    """The stages of an unscheduled function in program order; None where it is not plain loops around plain blocks.

    Not plain: blocks without an expression (sorts, scatters), predicates, extents that only the run decides.
    """
    root = function.body
    if not isinstance(root, SBlockRealize) or root.block.name_hint != "root":
        return None
    body = root.block.body
    stages = []
    for nest in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        read = _read_nest(nest, {*function.params})
        if read is None:
            return None
        stages += read
    return tuple(stages)


def _read_nest(nest: tirx.Stmt, parameters: set[tvm.ir.Var]) -> list[Stage] | None:
    loops: list[tuple[tvm.ir.Var, int]] = []
    while isinstance(nest, tirx.For):
        if not isinstance(nest.extent, tirx.IntImm) or int(nest.min) != 0 or nest.kind != tirx.ForKind.SERIAL:
            return None
        loops.append((nest.loop_var, int(nest.extent)))
        nest = nest.body
    if not isinstance(nest, SBlockRealize) or not isinstance(nest.predicate, tirx.IntImm):
        return None
    block: SBlock = nest.block
    stores, inits = _stores(block.body), _stores(block.init)
    bound = list(nest.iter_values)
    if not stores or len(inits or stores) != len(stores) or block.alloc_buffers or block.match_buffers:
        return None
    # TVM binds an axis of extent 1 that a loop is missing for to the constant 0.
    if not all(isinstance(value, tvm.ir.Var) or constant(value) == 0 for value in bound):
        return None
    extents = dict(loops)
    axes: dict[int, list[Axis]] = {_SPATIAL: [], _REDUCTION: []}
    for axis, value in zip(block.iter_vars, bound, strict=True):
        if int(axis.iter_type) not in axes:
            return None
        axes[int(axis.iter_type)].append(Axis(axis.var, extents.pop(value) if isinstance(value, tvm.ir.Var) else 1))
    if any(extent != 1 for extent in extents.values()):
        return None
    return [
        Stage(
            name=str(block.name_hint),
            spatial=tuple(axes[_SPATIAL]),
            reduction=tuple(axes[_REDUCTION]),
            buffer=store.buffer,
            indices=tuple(store.indices),
            init=init.value if init is not None else None,
            value=store.value,
            output=store.buffer in parameters,
        )
        for store, init in zip(stores, inits or [None] * len(stores), strict=True)
    ]


def _stores(statement: tirx.Stmt | None) -> list[tirx.BufferStore]:
    """The stores that the statement is made of, one of each buffer; none where they depend on each other, or on more.

    TVM writes accumulations into several buffers in one block, such as a sum and a sum of squares.
    """
    found: list[tirx.BufferStore] = []
    bound: dict[tvm.ir.Var, tvm.ir.Expr] = {}
    for part in statement.seq if isinstance(statement, tirx.SeqStmt) else [statement]:
        if isinstance(part, tirx.Bind):
            bound[part.var] = substitute(part.value, bound)
        elif isinstance(part, tirx.BufferStore):
            found.append(tirx.BufferStore(part.buffer, substitute(part.value, bound), part.indices))
        else:
            return []
    crossed = any(loads_of(store.value, other.buffer) for store in found for other in found if other is not store)
    return [] if crossed else found


def reads(stage: Stage, buffer: tvm.ir.Var) -> bool:
    """Whether the stage reads the buffer; what it accumulates in does not count."""
    return not stage.buffer.same_as(buffer) and bool(loads_of(stage.value, buffer))


def inline(stages: Sequence[Stage], keep: Callable[[Stage], bool]) -> tuple[Stage, ...]:
    """The stages with every element-wise one that others read put into them, but for outputs and what is to keep."""
    remaining = list(stages)
    for stage in stages:
        current = next(s for s in remaining if s.buffer.same_as(stage.buffer))
        readers = [s for s in remaining if reads(s, stage.buffer)]
        if current.reduction or current.output or not readers or keep(current) or not stores_at_its_axes(current):
            continue
        remaining = [_inlined(s, current) if s in readers else s for s in remaining if s is not current]
    return tuple(remaining)


def stores_at_its_axes(stage: Stage) -> bool:
    """Whether the stage stores each element at the place that its axes count."""
    return len(stage.indices) == len(stage.spatial) and all(
        index.same_as(axis.var) or (axis.extent == 1 and constant(index) == 0)
        for index, axis in zip(stage.indices, stage.spatial, strict=True)
    )


def _inlined(reader: Stage, producer: Stage) -> Stage:
    variables = [axis.var for axis in producer.spatial]
    value = replace_loads(
        reader.value,
        producer.buffer,
        lambda indices: substitute(producer.value, dict(zip(variables, indices, strict=True))),
    )
    return dataclasses.replace(reader, value=value)


def written_out(stage: Stage, longest: int) -> Stage:
    """A reduction of up to `longest` terms as one element-wise expression; any other stage as it is."""
    terms = math.prod(axis.extent for axis in stage.reduction)
    if not stage.reduction or not 0 < terms <= longest or stage.init is None:
        return stage
    total = stage.init
    for places in itertools.product(*(range(axis.extent) for axis in stage.reduction)):
        at: Values = {axis.var: number(place) for axis, place in zip(stage.reduction, places, strict=True)}
        so_far = total
        total = replace_loads(substitute(stage.value, at), stage.buffer, lambda _indices: so_far)  # noqa: B023
    return dataclasses.replace(stage, reduction=(), init=None, value=total)
