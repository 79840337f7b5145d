"""Multiplies on ordinary arithmetic units: each thread keeps a tile of sums in registers.

For each term of the depth a thread reads `thread_rows` + `thread_columns` elements from shared memory, in vectors, for
thread_rows × thread_columns fused multiply-adds. The threads of a warp stand 4 × 8: what they read lies together.
"""

from __future__ import annotations

import dataclasses

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.contraction.kernel import Emit
from tvmbridge.schedules.gpu.contraction.operand import Staged
from tvmbridge.schedules.gpu.launch import WARP, guarded, registers, shared
from tvmbridge.schedules.loops.emit import sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import number

_VECTOR_BYTES = 16  # of the widest load from shared memory
_WARP_ROWS, _WARP_COLUMNS = 4, 8


@dataclasses.dataclass(frozen=True)
class RegisterTile:
    """What a config says of a tile.

    rows, columns: of a block. thread_rows, thread_columns: of a thread. depth: terms of a step.
    slices: groups of threads among which the terms of a step are dealt out.
    """

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    depth: int
    slices: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.slices * self.slice_threads

    @property
    def slice_threads(self) -> int:
        """That share the terms of a step."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)


class RegisterTiles:
    """The `Multiplier` that works on a tile of registers."""

    def __init__(self, tile: RegisterTile, dtype: str, operand_dtype: str) -> None:
        self.rows, self.columns, self.depth, self.threads = tile.rows, tile.columns, tile.depth, tile.threads
        self._tile, self._dtype = tile, dtype
        lanes = _VECTOR_BYTES // (tvm.DataType(operand_dtype).bits // 8)
        self._row_lanes, self._column_lanes = min(lanes, tile.thread_rows), min(lanes, tile.thread_columns)
        # Rows of a tile start on other banks, and where a vector may be read or stored.
        self.padding = (lanes, lanes)
        self._sums, self._sums_made = registers(tile.thread_rows * tile.thread_columns, dtype, "sums")
        self._left, self._left_made = registers(tile.thread_rows, operand_dtype, "left_values")
        self._right, self._right_made = registers(tile.thread_columns, operand_dtype, "right_values")
        self._shared, self._shared_made = shared(tile.slices * tile.rows * tile.columns, dtype, "slice_sums")

    def depth_first(self, along_depth: bool) -> bool:
        """Always: a thread reads neighbouring places of one term."""
        return True

    def made(self) -> list[tirx.Stmt]:
        """The registers, and the memory by which slices exchange their sums."""
        of_slices = [self._shared_made] if self._tile.slices > 1 else []
        return [self._sums_made, self._left_made, self._right_made, *of_slices]

    def clear(self, thread: tvm.ir.Expr) -> tirx.Stmt:
        """Set the thread's sums to zero."""
        size = self._tile.thread_rows * self._tile.thread_columns
        return unrolled(size, lambda i: store(self._sums, [i], tirx.const(0, self._dtype)))

    def multiply(self, thread: tvm.ir.Expr, left: Staged, right: Staged) -> tirx.Stmt:
        """Add the thread's products of one step."""
        tile, (part, row, column) = self._tile, self._position(thread)
        terms = tile.depth // tile.slices

        def term(i: tvm.ir.Expr) -> tirx.Stmt:
            at = part * number(terms) + i
            return sequence(
                self._read(left, self._left, at, row, tile.rows, tile.thread_rows, self._row_lanes),
                self._read(right, self._right, at, column, tile.columns, tile.thread_columns, self._column_lanes),
                unrolled(tile.thread_rows, lambda r: unrolled(tile.thread_columns, lambda c: self._add(r, c))),
            )

        return unrolled(terms, term)

    def finish(self, thread: tvm.ir.Expr, lanes: int, emit: Emit) -> tirx.Stmt:
        """Hand over the thread's sums; with slices, each thread the whole sums of some places."""
        tile, (part, row, column) = self._tile, self._position(thread)
        if tile.slices > 1:
            return sequence(self._exchange(part, row, column), self._hand_over_slices(thread, lanes, emit))
        lanes = min(lanes, self._column_lanes)

        def vector(r: tvm.ir.Expr, v: tvm.ir.Expr) -> tirx.Stmt:
            first = v * number(lanes)
            at_row = self._place(r, row, tile.rows, tile.thread_rows, self._row_lanes)
            at_column = self._place(first, column, tile.columns, tile.thread_columns, self._column_lanes)
            return emit(at_row, at_column, lanes, lambda lane: self._sum(r, first + lane))

        return unrolled(tile.thread_rows, lambda r: unrolled(tile.thread_columns // lanes, lambda v: vector(r, v)))

    def _position(self, thread: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr]:
        """A thread's slice, and its row and column among the threads of the slice."""
        tile = self._tile
        part: tvm.ir.Expr = number(0)
        if tile.slices > 1:
            part, thread = (
                tirx.floordiv(thread, number(tile.slice_threads)),
                tirx.floormod(thread, number(tile.slice_threads)),
            )
        rows, columns = tile.rows // tile.thread_rows, tile.columns // tile.thread_columns
        if rows % _WARP_ROWS or columns % _WARP_COLUMNS:
            return part, tirx.floordiv(thread, number(columns)), tirx.floormod(thread, number(columns))
        warp, lane = tirx.floordiv(thread, number(WARP)), tirx.floormod(thread, number(WARP))
        across = columns // _WARP_COLUMNS
        row = tirx.floordiv(warp, number(across)) * number(_WARP_ROWS) + tirx.floordiv(lane, number(_WARP_COLUMNS))
        column = tirx.floormod(warp, number(across)) * number(_WARP_COLUMNS)
        return part, row, column + tirx.floormod(lane, number(_WARP_COLUMNS))

    def _place(self, i: tvm.ir.Expr, thread: tvm.ir.Expr, extent: int, count: int, lanes: int) -> tvm.ir.Expr:
        """Where in the tile the thread's place `i` is: vectors of all threads lie side by side, then the next ones."""
        vector, lane = tirx.floordiv(i, number(lanes)), tirx.floormod(i, number(lanes))
        return vector * number(extent * lanes // count) + thread * number(lanes) + lane

    def _read(
        self,
        operand: Staged,
        values: tvm.ir.Var,
        term: tvm.ir.Expr,
        thread: tvm.ir.Expr,
        extent: int,
        count: int,
        lanes: int,
    ) -> tirx.Stmt:
        """Bring a thread's elements of one term from shared memory into registers."""

        def vector(v: tvm.ir.Expr) -> tirx.Stmt:
            first = self._place(v * number(lanes), thread, extent, count, lanes)

            def one(lane: tvm.ir.Expr) -> tirx.Stmt:
                value = tirx.BufferLoad(operand.tile, [operand.layout.index(first + lane, term)])
                return store(values, [v * number(lanes) + lane], value)

            return vectorized(lanes, one)

        return unrolled(count // lanes, vector)

    def _sum(self, row: tvm.ir.Expr, column: tvm.ir.Expr) -> tvm.ir.Expr:
        return tirx.BufferLoad(self._sums, [row * number(self._tile.thread_columns) + column])

    def _add(self, row: tvm.ir.Expr, column: tvm.ir.Expr) -> tirx.Stmt:
        left, right = tirx.BufferLoad(self._left, [row]), tirx.BufferLoad(self._right, [column])
        product = left.astype(self._dtype) * right.astype(self._dtype)
        index = row * number(self._tile.thread_columns) + column
        return store(self._sums, [index], self._sum(row, column) + product)

    def _exchange(self, part: tvm.ir.Expr, row: tvm.ir.Expr, column: tvm.ir.Expr) -> tirx.Stmt:
        """Put the sums of each slice into shared memory."""
        tile = self._tile

        def one(r: tvm.ir.Expr, c: tvm.ir.Expr) -> tirx.Stmt:
            at_row = self._place(r, row, tile.rows, tile.thread_rows, self._row_lanes)
            at_column = self._place(c, column, tile.columns, tile.thread_columns, self._column_lanes)
            index = (part * number(tile.rows) + at_row) * number(tile.columns) + at_column
            return store(self._shared, [index], self._sum(r, c))

        return unrolled(tile.thread_rows, lambda r: unrolled(tile.thread_columns, lambda c: one(r, c)))

    def _hand_over_slices(self, thread: tvm.ir.Expr, lanes: int, emit: Emit) -> tirx.Stmt:
        tile = self._tile
        vectors = tile.rows * tile.columns // lanes
        run = tile.columns // lanes

        def some(i: tvm.ir.Expr) -> tirx.Stmt:
            index = i * number(tile.threads) + thread
            row, column = tirx.floordiv(index, number(run)), tirx.floormod(index, number(run)) * number(lanes)

            def total(lane: tvm.ir.Expr) -> tvm.ir.Expr:
                first = row * number(tile.columns) + column + lane
                found = tirx.BufferLoad(self._shared, [first])
                for part in range(1, tile.slices):
                    found = found + tirx.BufferLoad(self._shared, [number(part * tile.rows * tile.columns) + first])
                return found

            inside = None if vectors % tile.threads == 0 else index < number(vectors)
            return guarded(inside, emit(row, column, lanes, total))

        return unrolled(-(-vectors // tile.threads), some)
