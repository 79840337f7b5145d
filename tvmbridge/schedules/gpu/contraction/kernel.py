"""Writes a product for a GPU: each block of threads computes one tile of rows × columns, step by step along the depth.

Here is what all such kernels share: the grid of tiles, the order of loads and barriers, sums split over several blocks,
and what becomes of a finished sum. How a block multiplies is a `Multiplier`'s.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.contraction.depth import Depth
from tvmbridge.schedules.gpu.contraction.operand import Layout, Staged, Value, step_of, widest_vector
from tvmbridge.schedules.gpu.launch import all_of, guarded, launch, registers
from tvmbridge.schedules.loops.emit import loop, scratch, sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, number, substitute
from tvmbridge.schedules.loops.indices import coordinates, flat_offset, step, unravel
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tail import store_result, tail_axes
from tvmbridge.schedules.reading.product import Product

_REDUCING_THREADS = 256  # of a block that adds up what other blocks have summed
_STORED = 4  # elements of the widest store


class Emit(Protocol):
    """Takes the finished sums of `lanes` neighbouring columns of a tile: what the epilogue does with them."""

    def __call__(self, row: tvm.ir.Expr, column: tvm.ir.Expr, lanes: int, total: Total) -> tirx.Stmt:
        """The statement for the sums from (row, column) of the tile on."""


class Total(Protocol):
    """One of the sums that `Emit` is given."""

    def __call__(self, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """The sum of the column `lane` places on."""


class Multiplier(Protocol):
    """How the threads of a block multiply what lies in shared memory, and where their sums are."""

    rows: int
    columns: int
    depth: int
    threads: int
    padding: tuple[int, int]

    def depth_first(self, along_depth: bool) -> bool:
        """Whether a row of an operand's tile holds one term, of one whose loads run along the depth or do not."""

    def made(self) -> list[tirx.Stmt]:
        """The statements that make its buffers."""

    def clear(self, thread: tvm.ir.Expr) -> tirx.Stmt:
        """Set the sums to zero."""

    def multiply(self, thread: tvm.ir.Expr, left: Staged, right: Staged) -> tirx.Stmt:
        """Add the products of one step."""

    def finish(self, thread: tvm.ir.Expr, lanes: int, emit: Emit) -> tirx.Stmt:
        """Hand over the sums, up to `lanes` at once."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a block is: its outer axes, its group, the tile's first row and column, and its part of the depth."""

    outer: Values
    group: tvm.ir.Expr
    row: tvm.ir.Expr
    column: tvm.ir.Expr
    split: tvm.ir.Expr


@dataclasses.dataclass(frozen=True)
class _Run:
    """How an operand is loaded: `vector` elements at once along an axis. along_depth: whether that is of the depth."""

    axis: Axis
    vector: int
    along_depth: bool


@dataclasses.dataclass(frozen=True)
class ProductKernel:
    """One product, cut for one multiplier. splits: into how many parts, each a block of its own, the depth is cut."""

    product: Product
    left: tvm.ir.Expr
    right: tvm.ir.Expr
    depth: Depth
    multiplier: Multiplier
    splits: int

    def write(self) -> tirx.Stmt:
        """The whole kernel; where the depth is split, a second one that adds up the parts."""
        product, multiplier = self.product, self.multiplier
        row_tiles = -(-product.rows // multiplier.rows)
        column_tiles = -(-product.columns // multiplier.columns)
        extents = [*(axis.extent for axis in product.outer), product.groups, self._parts, row_tiles, column_tiles]

        def block(partial: tvm.ir.Var | None) -> tirx.Stmt:
            def body(index: tvm.ir.Expr, thread: tvm.ir.Expr) -> tirx.Stmt:
                *outer, group, split, row_tile, column_tile = unravel(index, extents)
                values = {axis.var: value for axis, value in zip(product.outer, outer, strict=True)}
                row, column = row_tile * number(multiplier.rows), column_tile * number(multiplier.columns)
                return self._block(_Place(values, group, row, column, split), thread, partial)

            return launch(math.prod(extents), multiplier.threads, body)

        if self._parts == 1:
            return block(None)
        size = self._parts * product.repeats * product.rows * product.columns
        partial, made = scratch([size], self._sum_dtype, "partial")
        return sequence(made, block(partial), self._add_up(partial))

    @property
    def _sum_dtype(self) -> str:
        return sum_dtype(self.product)

    @property
    def _steps(self) -> int:
        """Of one part of the depth."""
        return -(-self.depth.steps // self.splits)

    @property
    def _parts(self) -> int:
        """Parts of the depth that have a step."""
        return -(-self.depth.steps // self._steps)

    def _block(self, place: _Place, thread: tvm.ir.Expr, partial: tvm.ir.Var | None) -> tirx.Stmt:
        multiplier = self.multiplier
        left, right = self._left(place), self._right(place)
        first = place.split * number(self._steps)
        even = self.depth.steps % self._steps == 0
        steps = number(self._steps)
        if not even:
            steps = tirx.min(steps, number(self.depth.steps) - first)

        def load(step: tvm.ir.Expr) -> tirx.Stmt:
            return sequence(left.load(thread, first + step), right.load(thread, first + step))

        # TVM puts a barrier wherever threads are about to read what others have stored, or to store what they read.
        index = tvm.ir.Var("step", "int64")
        body = sequence(
            left.put(thread),
            right.put(thread),
            guarded(index + number(1) < steps, load(index + number(1))),
            multiplier.multiply(thread, left, right),
        )
        return sequence(
            *left.made,
            *right.made,
            *multiplier.made(),
            multiplier.clear(thread),
            load(number(0)),
            tirx.For(index, number(0), steps, tirx.ForKind.SERIAL, body),
            multiplier.finish(thread, self._stored_at_once(), lambda *sums: self._emit(place, partial, *sums)),
        )

    def _left(self, place: _Place) -> Staged:
        product = self.product
        rows, run = product.row_axes, self._run(self.left, product.row_axes[-1], self.multiplier.rows)
        at_block = {product.column.var: place.group * number(product.columns), **place.outer}

        def at(offset: tvm.ir.Expr, step: tvm.ir.Expr, term: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
            row = self._clamped(place.row + offset, product.rows, self.multiplier.rows, run)
            values = {**at_block, **coordinates(row, rows), **self.depth.at(step, term)}
            values[run.axis.var] = values[run.axis.var] + lane
            return self._or_zero(substitute(self.left, values), step, term)

        return self._staged("left", at, self.left, run, 0)

    def _right(self, place: _Place) -> Staged:
        product = self.product
        column = Axis(product.column.var, product.columns)
        run = self._run(self.right, column, self.multiplier.columns)
        # Where a row axis has one place only, the right operand may read it, too.
        at_block = {**{axis.var: number(0) for axis in product.row_axes}, **place.outer}

        def at(offset: tvm.ir.Expr, step: tvm.ir.Expr, term: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
            chosen = self._clamped(place.column + offset, product.columns, self.multiplier.columns, run)
            values = {**at_block, **self.depth.at(step, term)}
            values[column.var] = place.group * number(product.columns) + chosen
            values[run.axis.var] = values[run.axis.var] + lane
            return self._or_zero(substitute(self.right, values), step, term)

        return self._staged("right", at, self.right, run, 1)

    def _run(self, value: tvm.ir.Expr, places: Axis, extent: int) -> _Run:
        """Along which axis neighbours in memory lie, the depth's last or `places`, and how many to load at once."""
        product, depth = self.product, self.depth.inner[-1]
        # Groups apart, the left operand does not depend on the column.
        group, column = Axis(tvm.ir.Var("group", "int64"), product.groups), Axis(product.column.var, product.columns)
        apart = {column.var: group.var * number(product.columns) + column.var}
        value = substitute(value, apart)
        axes = [*product.outer, *product.row_axes, group, column, *product.main.reduction]
        by_depth = widest_vector(value, depth, axes, _widest(self.multiplier.depth))
        by_place = widest_vector(value, places, axes, _widest(extent))
        if by_depth == by_place == 1:
            return _Run(places if step_of(value, places, axes) == 1 else depth, 1, step_of(value, places, axes) != 1)
        return _Run(depth, by_depth, True) if by_depth >= by_place else _Run(places, by_place, False)

    def _clamped(self, place: tvm.ir.Expr, extent: int, tile: int, run: _Run) -> tvm.ir.Expr:
        """The place, or the last one where a tile stands over: what is computed there is not stored."""
        if extent % tile == 0:
            return place
        return tirx.min(place, number(extent - (1 if run.along_depth else run.vector)))

    def _staged(self, name: str, at: Value, value: tvm.ir.Expr, run: _Run, side: int) -> Staged:
        multiplier = self.multiplier
        layout = Layout(
            extent=(multiplier.rows, multiplier.columns)[side],
            depth=multiplier.depth,
            along_depth=run.along_depth,
            vector=run.vector,
            depth_first=multiplier.depth_first(run.along_depth),
            padding=multiplier.padding[side],
        )
        return Staged(name, layout, str(value.ty.dtype), multiplier.threads, at)

    def _or_zero(self, value: tvm.ir.Expr, step: tvm.ir.Expr, term: tvm.ir.Expr) -> tvm.ir.Expr:
        """The value of a term of the depth; zero where the last run has no such term."""
        there = self.depth.is_there(step, term)
        return value if there is None else tirx.if_then_else(there, value, tirx.const(0, str(value.ty.dtype)))

    def _stored_at_once(self) -> int:
        """How many neighbouring columns are there wherever one is."""
        return math.gcd(self.product.columns, _STORED)

    def _emit(
        self, place: _Place, partial: tvm.ir.Var | None, row: tvm.ir.Expr, column: tvm.ir.Expr, lanes: int, total: Total
    ) -> tirx.Stmt:
        product, multiplier = self.product, self.multiplier
        at_row, at_column = place.row + row, place.column + column
        inside = all_of(
            [
                at_row < number(product.rows) if product.rows % multiplier.rows else None,
                at_column < number(product.columns) if product.columns % multiplier.columns else None,
            ]
        )

        def one(lane: tvm.ir.Expr) -> tirx.Stmt:
            if partial is None:
                return self._store(place.outer, place.group, at_row, at_column + lane, total(lane))
            outer = [(place.outer[axis.var], axis.extent) for axis in product.outer]
            index = place.split
            for value, extent in [*outer, (place.group, product.groups), (at_row, product.rows)]:
                index = index * number(extent) + value
            return store(partial, [index * number(product.columns) + at_column + lane], total(lane))

        write = vectorized if partial is not None or self._stores_in_a_row() else unrolled
        return guarded(inside, write(lanes, one))

    def _store(
        self, outer: Values, group: tvm.ir.Expr, row: tvm.ir.Expr, column: tvm.ir.Expr, total: tvm.ir.Expr
    ) -> tirx.Stmt:
        """What was fused behind the sum, and its store."""
        product = self.product
        at = {**outer, **coordinates(row, product.row_axes)}
        at[product.column.var] = group * number(product.columns) + column
        return store_result(product.main, product.tail, at, total.astype(product.dtype))

    def _stores_in_a_row(self) -> bool:
        """Whether the outputs of neighbouring columns are neighbours in memory."""
        main, tail = self.product.main, self.product.tail
        buffer, indices = main.buffer, list(main.indices)
        if tail is not None:
            places = tail_axes(main, tail)
            buffer, indices = tail.buffer, [substitute(index, places) for index in tail.indices]
        return step(flat_offset(buffer, indices), self.product.column, main.spatial) == 1

    def _add_up(self, partial: tvm.ir.Var) -> tirx.Stmt:
        """The kernel that adds up the parts of each sum, and stores what is made of it."""
        product = self.product
        size = product.repeats * product.rows * product.columns
        extents = [*(axis.extent for axis in product.outer), product.groups, product.rows, product.columns]

        def body(block: tvm.ir.Expr, thread: tvm.ir.Expr) -> tirx.Stmt:
            index = block * number(_REDUCING_THREADS) + thread
            *outer, group, row, column = unravel(index, extents)
            values = {axis.var: value for axis, value in zip(product.outer, outer, strict=True)}
            total, made = registers(1, self._sum_dtype, "total")
            sum_so_far = tirx.BufferLoad(total, [number(0)])

            def add(part: tvm.ir.Expr) -> tirx.Stmt:
                return store(total, [number(0)], sum_so_far + tirx.BufferLoad(partial, [part * number(size) + index]))

            added = sequence(
                made,
                store(total, [number(0)], tirx.const(0, self._sum_dtype)),
                loop(self._parts, add),
                self._store(values, group, row, column, sum_so_far),
            )
            return guarded(None if size % _REDUCING_THREADS == 0 else index < number(size), added)

        return launch(-(-size // _REDUCING_THREADS), _REDUCING_THREADS, body)


def _widest(extent: int) -> int:
    """The widest vector that divides the extent."""
    return extent & -extent


def sum_dtype(product: Product) -> str:
    """What sums are kept in: float32 for those of float16, which lose digits in their own type."""
    return "float32" if product.dtype == "float16" else product.dtype
