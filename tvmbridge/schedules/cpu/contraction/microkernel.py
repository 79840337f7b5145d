"""Writes the loops of a product: tiles of rows × vectors of columns whose sums stay in registers.

The inner loop loads one vector for each of a tile's columns and broadcasts one element of each of its rows, for
rows × vectors fused multiply-adds (the scheme of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008). What was fused behind the sum is applied to the tile before it is stored. Rows and columns that
no tile divides are cut into tiles of two sizes, and vectors that overlap: there are no predicates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.contraction.columns import Columns
from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.emit import (
    block,
    loop,
    nest,
    parallel,
    scratch,
    sequence,
    store,
    unrolled,
    vectorized,
)
from tvmbridge.schedules.loops.expressions import Values, loads, number, reload, substitute
from tvmbridge.schedules.loops.indices import coordinates, unravel
from tvmbridge.schedules.loops.register_tile import RegisterTile, register_tile
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tail import HEAVY, store_result
from tvmbridge.schedules.loops.tiling import Tiles
from tvmbridge.schedules.reading.product import Product

BLOCK = 16  # elements of depth that lie together in packed rows: a cache line of float32


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config made whole.

    rows, panel: how the rows are cut into tiles, and the vectors of columns into panels.
    unroll: steps of the depth in one step of its loop.
    row_tiles, panels: tiles and panels in one task.
    columns_outer: whether neighbouring tasks share their columns, or else their rows.
    pack_rows: whether a task first copies its rows into one stream.
    threads: whether tasks are dealt out to threads.
    """

    rows: Tiles
    panel: Tiles
    unroll: int
    row_tiles: int
    panels: int
    columns_outer: bool
    pack_rows: bool
    threads: bool


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a task is: its outer axes, its group, its packed rows if any."""

    outer: Values
    group: tvm.ir.Expr
    rows: tvm.ir.Var | None


@dataclasses.dataclass(frozen=True)
class _Tile:
    """One tile: which of its task's, its first row and its rows, its first vector and its vectors."""

    index: tvm.ir.Expr
    row: tvm.ir.Expr
    rows: int
    vector: tvm.ir.Expr
    vectors: int


@dataclasses.dataclass(frozen=True)
class ProductWriter:
    """Writes one product by one plan."""

    product: Product
    plan: Plan
    columns: Columns

    def write(self) -> tirx.Stmt:
        """All loops of the sum and its tail."""
        plan, product = self.plan, self.product
        row_blocks, column_blocks = -(-plan.rows.count // plan.row_tiles), -(-plan.panel.count // plan.panels)
        inner = [column_blocks, row_blocks] if plan.columns_outer else [row_blocks, column_blocks]
        extents = [*(axis.extent for axis in product.outer), product.groups, *inner]

        def task(index: tvm.ir.Expr) -> tirx.Stmt:
            *outer, group, first, second = unravel(index, extents)
            row_block, column_block = (second, first) if plan.columns_outer else (first, second)
            values = {axis.var: value for axis, value in zip(product.outer, outer, strict=True)}
            return self._task(values, group, row_block, column_block)

        count = math.prod(extents)
        return parallel(count, task) if plan.threads and count > 1 else loop(count, task)

    def _task(self, outer: Values, group: tvm.ir.Expr, row_block: tvm.ir.Expr, column_block: tvm.ir.Expr) -> tirx.Stmt:
        plan = self.plan
        if not plan.pack_rows:
            return self._panels(_Place(outer, group, None), row_block, column_block)
        depth = self._depth_axis
        shape = [*(axis.extent for axis in self._window), depth.extent // BLOCK, plan.rows.size, BLOCK]
        dtype = str(loads(self.product.left)[0].source.dtype)
        rows, made = scratch([plan.row_tiles, *shape], dtype, "rows")
        place = _Place(outer, group, rows)
        copy = self._tiles(row_block, lambda i, row, count: self._pack(place, _Tile(i, row, count, number(0), 0)))
        return sequence(made, copy, self._panels(place, row_block, column_block))

    def _panels(self, place: _Place, row_block: tvm.ir.Expr, column_block: tvm.ir.Expr) -> tirx.Stmt:
        def tiles(vectors: int, vector: tvm.ir.Expr) -> tirx.Stmt:
            return self._tiles(row_block, lambda i, row, rows: self._tile(place, _Tile(i, row, rows, vector, vectors)))

        panel = self.plan.panel
        return block(column_block, self.plan.panels, panel.count, lambda _, index: panel.each(index, tiles))

    def _tiles(self, row_block: tvm.ir.Expr, body: Callable[[tvm.ir.Expr, tvm.ir.Expr, int], tirx.Stmt]) -> tirx.Stmt:
        """`body(which of the task's tiles, first row, rows)` for each of them."""
        rows = self.plan.rows
        return block(
            row_block,
            self.plan.row_tiles,
            rows.count,
            lambda i, index: rows.each(index, lambda count, row: body(i, row, count)),
        )

    @property
    def _depth_axis(self) -> Axis:
        """The reduction axis that is unrolled: the innermost one that has more than one step."""
        long = [axis for axis in self.product.main.reduction if axis.extent > 1]
        return (long or self.product.main.reduction)[-1]

    @property
    def _window(self) -> list[Axis]:
        return [axis for axis in self.product.main.reduction if axis is not self._depth_axis]

    def _at(self, place: _Place, row: tvm.ir.Expr) -> Values:
        """The axes of one row; the column axis stands at the group's first column, for the left operand."""
        return {
            **place.outer,
            **coordinates(row, self.product.row_axes),
            self.product.column.var: place.group * number(self.product.columns),
        }

    def _pack(self, place: _Place, tile: _Tile) -> tirx.Stmt:
        """Copy a tile's rows into the order in which the inner loop reads them."""
        depth, window = self._depth_axis, self._window
        load = loads(self.product.left)[0]

        def blocks(chosen: Values) -> tirx.Stmt:
            def copy(step: tvm.ir.Expr, row: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
                at = {**self._at(place, tile.row + row), **chosen, depth.var: step * number(BLOCK) + lane}
                where = [tile.index, *(chosen[axis.var] for axis in window), step, row, lane]
                return store(place.rows, where, substitute(load, at))

            return loop(
                depth.extent // BLOCK,
                lambda step: unrolled(tile.rows, lambda r: vectorized(BLOCK, lambda lane: copy(step, r, lane))),
            )

        return nest(window, blocks)

    def _tile(self, place: _Place, tile: _Tile) -> tirx.Stmt:
        """Clear the sums, add up, apply the tail and store."""
        product, columns = self.product, self.columns
        sums = register_tile(tile.rows, tile.vectors, columns.lanes, product.dtype)

        def add(at: Values, packed: Sequence[tvm.ir.Expr]) -> tirx.Stmt:
            def term(r: tvm.ir.Expr, v: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
                everything = {**self._at(place, tile.row + r), **at}
                left = product.left
                if place.rows is not None:
                    *front, within = packed
                    left = reload(left, place.rows, [tile.index, *front, r, within])
                right = columns.value(everything, place.group, tile.vector + v, lane)
                return substitute(left, everything) * right

            return sums.add(term)

        return sequence(*sums.made, sums.clear(product.main.init), self._depth(add), self._store(place, tile, sums))

    def _depth(self, add: Callable[[Values, Sequence[tvm.ir.Expr]], tirx.Stmt]) -> tirx.Stmt:
        """The loops over the depth around `add(reduction axes, where the packed rows have it)`."""
        axis, unroll = self._depth_axis, self.plan.unroll

        def window(at: Values) -> tirx.Stmt:
            chosen = [at[other.var] for other in self._window]

            def steps(first: tvm.ir.Expr, count: int, packed: tuple[tvm.ir.Expr, tvm.ir.Expr]) -> tirx.Stmt:
                step, within = packed
                return unrolled(count, lambda u: add({**at, axis.var: first + u}, [*chosen, step, within + u]))

            def packed_steps(step: tvm.ir.Expr, part: tvm.ir.Expr) -> tirx.Stmt:
                within = part * number(unroll)
                return steps(step * number(BLOCK) + within, unroll, (step, within))

            if self.plan.pack_rows:
                return loop(
                    axis.extent // BLOCK, lambda step: loop(BLOCK // unroll, lambda part: packed_steps(step, part))
                )
            whole, rest = divmod(axis.extent, unroll)
            nowhere = (number(0), number(0))
            return sequence(
                loop(whole, lambda k: steps(k * number(unroll), unroll, nowhere)) if whole else None,
                steps(number(whole * unroll), rest, nowhere) if rest else None,
            )

        return nest(self._window, window)

    def _store(self, place: _Place, tile: _Tile, sums: RegisterTile) -> tirx.Stmt:
        """Apply the tail to the tile's sums and store the output."""
        tail = self.product.tail
        if tail is None or operations(tail.value) < HEAVY:
            return sums.each(lambda r, v, lane: self._result(place, tile, (r, v, lane), sums.total(r, v, lane)))
        spilled, made = scratch([tile.rows, tile.vectors, self.columns.lanes], self.product.dtype, "spilled")
        spill = sums.each(lambda r, v, lane: store(spilled, [r, v, lane], sums.total(r, v, lane)))

        def result(*at: tvm.ir.Expr) -> tirx.Stmt:
            return self._result(place, tile, at, tirx.BufferLoad(spilled, list(at)))

        return sequence(made, spill, loop(tile.rows, lambda row: sums.row(row, result)))

    def _result(self, place: _Place, tile: _Tile, at: Sequence[tvm.ir.Expr], total: tvm.ir.Expr) -> tirx.Stmt:
        """Store what the tail makes of the sum at one (row, vector, lane) of a tile."""
        r, v, lane = at
        values = self._at(place, tile.row + r)
        values[self.product.column.var] = self.columns.column(place.group, tile.vector + v, lane)
        return store_result(self.product.main, self.product.tail, values, total)
