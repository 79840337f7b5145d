"""Where a product's right operand lies: as it came, packed when the bundle is built, or packed by the kernel."""

from __future__ import annotations

import dataclasses
import math

import tvm
from tvm import tirx

from tvmbridge.schedules import Packing
from tvmbridge.schedules.loops.emit import loop, parallel, scratch, store, vectorized
from tvmbridge.schedules.loops.expressions import Values, loads, number, reload, substitute
from tvmbridge.schedules.loops.indices import depends, unravel
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import Blocks
from tvmbridge.schedules.reading.product import Product


@dataclasses.dataclass(frozen=True)
class Columns:
    """The right operand in vectors of columns.

    buffer: packed, vectors first, lanes last: (groups * vectors, …, lanes); None where it is read as it came.
    packing: how a constant is brought into that order; None where the kernel does it by `pack`.
    """

    product: Product
    vectors: Blocks
    buffer: tvm.ir.Var | None
    packing: Packing | None

    @property
    def lanes(self) -> int:
        """Columns of a vector."""
        return self.vectors.size

    def column(self, group: tvm.ir.Expr, vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """The column axis at one lane of one of the group's vectors."""
        return group * number(self.product.columns) + self.vectors.start(vector) + lane

    def value(self, at: Values, group: tvm.ir.Expr, vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """The right factor there; `at` holds all other axes."""
        right = self.product.right
        if self.buffer is None:
            return substitute(right, {**at, self.product.column.var: self.column(group, vector, lane)})
        if self.packing is not None:
            between = list(loads(right)[0].indices[:-1])
        else:
            between = [axis.var for axis in self._between()]
        first = group * number(self.vectors.count) + vector
        return substitute(reload(right, self.buffer, [first, *between, lane]), at)

    def pack(self, threads: bool) -> tirx.Stmt | None:
        """Copy the operand into `buffer`, where the kernel has to."""
        if self.buffer is None or self.packing is not None:
            return None
        buffer, axes = self.buffer, self._between()
        extents = [self.product.groups, self.vectors.count, *(axis.extent for axis in axes[: -1 or None])]

        def step(index: tvm.ir.Expr) -> tirx.Stmt:
            group, vector, *outer = unravel(index, extents)

            def copy(depth: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
                chosen = [*outer, depth]
                at: Values = {axis.var: number(0) for axis in self.product.main.spatial}
                at.update({axis.var: value for axis, value in zip(axes, chosen, strict=True)})
                at[self.product.column.var] = self.column(group, vector, lane)
                load = substitute(loads(self.product.right)[0], at)
                return store(buffer, [group * number(self.vectors.count) + vector, *chosen, lane], load)

            return loop(axes[-1].extent, lambda depth: vectorized(self.lanes, lambda lane: copy(depth, lane)))

        count = math.prod(extents)
        return parallel(count, step) if threads else loop(count, step)

    def _between(self) -> list[Axis]:
        return between_axes(self.product)


def between_axes(product: Product) -> list[Axis]:
    """The axes that choose an element of the right operand besides its column: outer ones, then the depth."""
    right = loads(product.right)[0]
    axes = product.main.axes
    outer = [axis for axis in product.outer if any(depends(index, axis, axes) for index in right.indices)]
    return [*outer, *product.main.reduction]


def columns_of(
    product: Product, vectors: Blocks, weight: tvm.ir.Var | None, pack: bool
) -> tuple[Columns, tirx.Stmt | None]:
    """The right operand's place, and the statement that makes its buffer where the kernel packs it.

    weight: the function's parameter where the operand is a constant.
    """
    dtype = str(loads(product.right)[0].source.dtype)
    if product.constant is not None and weight is not None:
        packing = Packing(product.constant, vectors.size, product.groups)
        shape = packing.shape([int(extent) for extent in weight.shape])
        buffer = tirx.decl_buffer([number(extent) for extent in shape], dtype, "packed")
        return Columns(product, vectors, buffer, packing), None
    if not pack:
        return Columns(product, vectors, None, None), None
    shape = (product.groups * vectors.count, *(axis.extent for axis in between_axes(product)), vectors.size)
    buffer, made = scratch(shape, dtype, "packed")
    return Columns(product, vectors, buffer, None), made
