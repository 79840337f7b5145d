"""Reads a kernel as a product: rows × columns summed over a depth, whatever the axes were called.

`out[batch, row, column] = Σ left[batch, row, depth] · right[batch, depth, column]`, and what was fused behind it. That
is matmul with any operand broadcast, and channels-last convolution with any window, stride, dilation and number of
groups: there the rows are pixels, and the window is part of the depth.
"""

from __future__ import annotations

import dataclasses
import math

import tvm
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules.loops.expressions import chooses, constant, loads, number, substitute
from tvmbridge.schedules.loops.indices import offset, step
from tvmbridge.schedules.loops.stages import Axis, Stage, inline, read_stages, reads

_FEW_ROWS = 6  # below so many an axis is fused with the next one, even where that costs a division a row


@dataclasses.dataclass(frozen=True)
class Product:
    """One kernel as a product.

    pads: stages that copy an operand with a border of zeros, run first.
    main, tail: the sum, and the element-wise stage that stores the output; None where the sum is the output.
    left, right: the factors of main's value, each with one load.
    outer: spatial axes outside the rows; `right` may depend on them.
    row_axes: the axes that are fused into rows; the last one is the fastest.
    column: the column axis of all groups, each of `columns` columns; group g has columns from g * columns on.
    constant: the parameter that holds `right`, where it is a weight with the columns last.
    right_step: by how many elements neighbouring columns lie apart; None where that varies.
    """

    pads: tuple[Stage, ...]
    main: Stage
    tail: Stage | None
    left: tvm.ir.Expr
    right: tvm.ir.Expr
    outer: tuple[Axis, ...]
    row_axes: tuple[Axis, ...]
    column: Axis
    groups: int
    constant: int | None
    right_step: int | None

    @property
    def rows(self) -> int:
        """Rows that tiles are cut from."""
        return math.prod(axis.extent for axis in self.row_axes)

    @property
    def columns(self) -> int:
        """Columns of one group."""
        return self.column.extent // self.groups

    @property
    def depth(self) -> int:
        """Terms of each sum."""
        return math.prod(axis.extent for axis in self.main.reduction)

    @property
    def repeats(self) -> int:
        """How many rows × columns there are: steps of the outer axes times groups."""
        return math.prod(axis.extent for axis in self.outer) * self.groups

    @property
    def multiply_adds(self) -> int:
        """Of the whole kernel."""
        return self.repeats * self.rows * self.columns * self.depth

    @property
    def dtype(self) -> str:
        """What the sum is kept in."""
        return str(self.main.buffer.dtype)


def read_product(kernel: Kernel, *, keep_pads: bool = True) -> Product | None:
    """The kernel as a product; None where it is something else.

    keep_pads: whether an operand's border of zeros is a copy made first, or else a choice wherever it is read.
    """
    stages = read_stages(kernel.function)
    if stages is None or sum(stage.output for stage in stages) != 1:
        return None
    sums = [stage for stage in stages if stage.reduction]
    if len(sums) != 1:
        return None
    stages = inline(stages, keep=lambda stage: keep_pads and reads(sums[0], stage.buffer) and chooses(stage.value))
    main = next(stage for stage in stages if stage.reduction)
    before, behind = stages[: stages.index(main)], stages[stages.index(main) + 1 :]
    if len(behind) > 1 or any(not reads(main, pad.buffer) for pad in before):
        return None
    factors = _factors(main)
    if factors is None:
        return None
    for left, right in (factors, factors[::-1]):
        product = _arrange(kernel, before, main, behind[0] if behind else None, left, right)
        if product is not None:
            return product
    return None


def _factors(main: Stage) -> tuple[tvm.ir.Expr, tvm.ir.Expr] | None:
    """Of `sum + left * right`, the two factors, each of which reads one element."""
    if constant(main.init) != 0 or not isinstance(main.value, tirx.Add):
        return None
    total, term = main.value.a, main.value.b
    if not isinstance(total, tvm.ir.TensorLoad) or not total.source.same_as(main.buffer):
        return None
    if not isinstance(term, tirx.Mul) or len(loads(term.a)) != 1 or len(loads(term.b)) != 1:
        return None
    return term.a, term.b


def _arrange(
    kernel: Kernel, pads: tuple[Stage, ...], main: Stage, tail: Stage | None, left: tvm.ir.Expr, right: tvm.ir.Expr
) -> Product | None:
    bounds = main.axes
    if not main.spatial or any(axis.extent == 0 for axis in bounds):
        return None
    column = main.spatial[-1]
    left_offset, right_offset = offset(loads(left)[0]), offset(loads(right)[0])
    right_step = step(right_offset, column, bounds)
    groups = _groups(left_offset, column, bounds)
    if (right_step == 0 and column.extent > 1) or groups is None or (groups > 1 and right_step != 1):
        return None
    *others, last = main.spatial
    in_right = [step(right_offset, axis, bounds) != 0 for axis in others]
    rows = _fused_rows([axis for axis, found in zip(others, in_right, strict=True) if not found], left_offset, bounds)
    outer = tuple(axis for axis in others if axis not in rows)
    if not rows:  # a product of a vector with a matrix
        rows = (Axis(tvm.ir.Var("row", "int64"), 1),)
    source = loads(right)[0].source
    index = next((i for i, tensor in enumerate(kernel.function.params) if tensor.same_as(source)), None)
    indices = loads(right)[0].indices
    shared = any(reads(stage, source) for stage in (*pads, *([tail] if tail else []))) or loads(left)[0].source.same_as(
        source
    )
    constant = index in kernel.constants and bool(indices) and indices[-1].same_as(last.var) and not shared
    return Product(
        pads=pads,
        main=main,
        tail=tail,
        left=left,
        right=right,
        outer=outer,
        row_axes=rows,
        column=column,
        groups=groups,
        constant=index if constant else None,
        right_step=right_step,
    )


def _groups(left: tvm.ir.Expr, column: Axis, bounds: tuple[Axis, ...]) -> int | None:
    """Into how many groups of columns the left operand falls: within one it does not depend on the column."""
    if step(left, column, bounds) == 0:
        return 1
    others = tuple(axis for axis in bounds if axis is not column)
    for groups in range(2, column.extent):
        if column.extent % groups:
            continue
        group = Axis(tvm.ir.Var("group", "int64"), groups)
        within = Axis(tvm.ir.Var("within", "int64"), column.extent // groups)
        split = substitute(left, {column.var: group.var * number(within.extent) + within.var})
        if step(split, within, (*others, group, within)) == 0:
            return groups
    return None


def _fused_rows(axes: list[Axis], left: tvm.ir.Expr, bounds: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The innermost axes that make one run of evenly spaced rows; of few rows, more than that."""
    rows: list[Axis] = []
    spacing: int | None = None
    even = True
    for axis in reversed(axes):
        extent = math.prod(row.extent for row in rows)
        if extent == 1:
            spacing = step(left, axis, bounds)
        elif axis.extent > 1:
            even = even and spacing is not None and step(left, axis, bounds) == spacing * extent
            if not even and extent >= _FEW_ROWS:
                break
        rows.insert(0, axis)
    return tuple(rows)
