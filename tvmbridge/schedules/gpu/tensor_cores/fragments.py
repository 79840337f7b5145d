"""Multiplies float16 on tensor cores: each warp holds the sums of some 16 × 16 fragments in float32.

By CUDA's warp matrix functions (CUDA C++ Programming Guide, "Warp Matrix Functions"), which every architecture since
sm_70 has. How a fragment's elements are dealt out to the threads of a warp is not told, so finished sums go through
shared memory, a row of fragments at a time.
"""

from __future__ import annotations

import dataclasses

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.contraction.kernel import Emit
from tvmbridge.schedules.gpu.contraction.operand import Staged
from tvmbridge.schedules.gpu.launch import WARP, shared
from tvmbridge.schedules.loops.emit import sequence, store, unrolled
from tvmbridge.schedules.loops.expressions import number

SIDE = 16  # rows, columns and depth of a fragment
PADDING = 8  # elements behind a row in shared memory: 16 bytes, which the functions ask for, and other banks
_SUM, _OPERAND = "float32", "float16"


@dataclasses.dataclass(frozen=True)
class WarpTile:
    """What a config says of a tile; all are multiples of 16.

    rows, columns: of a block. warp_rows, warp_columns: of a warp. depth: terms of a step.
    """

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    depth: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return (self.rows // self.warp_rows) * (self.columns // self.warp_columns)


class Fragments:
    """The `Multiplier` that works on fragments."""

    padding = (PADDING, PADDING)

    def __init__(self, tile: WarpTile) -> None:
        self.rows, self.columns, self.depth = tile.rows, tile.columns, tile.depth
        self.threads = tile.warps * WARP
        self._tile = tile
        self._down, self._across = tile.warp_rows // SIDE, tile.warp_columns // SIDE
        self._sums, self._sums_made = _fragments(self._down * self._across, _SUM, "sums", "wmma.accumulator")
        self._left, self._left_made = _fragments(self._down, _OPERAND, "left_values", "wmma.matrix_a")
        self._right, self._right_made = _fragments(self._across, _OPERAND, "right_values", "wmma.matrix_b")
        self._strip, self._strip_made = shared(tile.warps * SIDE * tile.warp_columns, _SUM, "strip")

    def depth_first(self, along_depth: bool) -> bool:
        """As it comes: a fragment can be read by rows and by columns."""
        return not along_depth

    def made(self) -> list[tirx.Stmt]:
        """The fragments, and the memory through which finished sums go."""
        return [self._sums_made, self._left_made, self._right_made, self._strip_made]

    def clear(self, thread: tvm.ir.Expr) -> tirx.Stmt:
        """Set the warp's sums to zero."""
        zero = tirx.const(0, _SUM)

        def fill(i: tvm.ir.Expr) -> tirx.Stmt:
            return tirx.Evaluate(tirx.op.tvm_fill_fragment(self._sums.data, SIDE, SIDE, SIDE, i, zero))

        # The strip is in use from here on, or TVM would give it the memory of an operand's tile, and then refuse
        # pointers to what is of another type.
        return sequence(store(self._strip, [thread], zero), unrolled(self._down * self._across, fill))

    def multiply(self, thread: tvm.ir.Expr, left: Staged, right: Staged) -> tirx.Stmt:
        """Add the warp's products of one step."""
        row, column = self._position(thread)

        def part(k: tvm.ir.Expr) -> tirx.Stmt:
            term = k * number(SIDE)

            def read_left(i: tvm.ir.Expr) -> tirx.Stmt:
                return _read(self._left, i, left, row + i * number(SIDE), term, rows_are_places=True)

            def read_right(j: tvm.ir.Expr) -> tirx.Stmt:
                return _read(self._right, j, right, column + j * number(SIDE), term, rows_are_places=False)

            return sequence(
                unrolled(self._down, read_left),
                unrolled(self._across, read_right),
                unrolled(self._down, lambda i: unrolled(self._across, lambda j: self._add(i, j))),
            )

        return unrolled(self._tile.depth // SIDE, part)

    def finish(self, thread: tvm.ir.Expr, lanes: int, emit: Emit) -> tirx.Stmt:
        """Bring one row of the warp's fragments after the other into shared memory, and hand it over from there."""
        row, column = self._position(thread)
        warp, lane = tirx.floordiv(thread, number(WARP)), tirx.floormod(thread, number(WARP))
        wide = self._tile.warp_columns
        strip = warp * number(SIDE * wide)
        run = wide // lanes

        def one(i: tvm.ir.Expr) -> tirx.Stmt:
            def write(j: tvm.ir.Expr) -> tirx.Stmt:
                place = self._strip.access_ptr("w", offset=strip + j * number(SIDE), extent=number(SIDE * wide))
                index = i * number(self._across) + j
                return tirx.Evaluate(
                    tirx.op.tvm_store_matrix_sync(self._sums.data, SIDE, SIDE, SIDE, index, place, wide, "row_major")
                )

            def hand_over(v: tvm.ir.Expr) -> tirx.Stmt:
                index = v * number(WARP) + lane
                down, along = tirx.floordiv(index, number(run)), tirx.floormod(index, number(run)) * number(lanes)

                def total(lane: tvm.ir.Expr) -> tvm.ir.Expr:
                    return tirx.BufferLoad(self._strip, [strip + down * number(wide) + along + lane])

                return emit(row + i * number(SIDE) + down, column + along, lanes, total)

            return sequence(unrolled(self._across, write), unrolled(SIDE * run // WARP, hand_over))

        return unrolled(self._down, one)

    def _position(self, thread: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        """The first row and column of a thread's warp."""
        warp, across = tirx.floordiv(thread, number(WARP)), self._tile.columns // self._tile.warp_columns
        row = tirx.floordiv(warp, number(across)) * number(self._tile.warp_rows)
        return row, tirx.floormod(warp, number(across)) * number(self._tile.warp_columns)

    def _add(self, i: tvm.ir.Expr, j: tvm.ir.Expr) -> tirx.Stmt:
        index = i * number(self._across) + j
        return tirx.Evaluate(
            tirx.op.tvm_mma_sync(
                self._sums.data, index, self._left.data, i, self._right.data, j, self._sums.data, index
            )
        )


def _read(
    fragments: tvm.ir.Var,
    index: tvm.ir.Expr,
    operand: Staged,
    place: tvm.ir.Expr,
    term: tvm.ir.Expr,
    *,
    rows_are_places: bool,
) -> tirx.Stmt:
    """Bring one fragment from shared memory into registers: its rows are places, or terms of the depth."""
    layout = operand.layout
    down = SIDE * layout.row
    pointer = operand.tile.access_ptr("r", offset=layout.index(place, term), extent=number(down))
    order = "row_major" if layout.depth_first != rows_are_places else "col_major"
    return tirx.Evaluate(
        tirx.op.tvm_load_matrix_sync(fragments.data, SIDE, SIDE, SIDE, index, pointer, layout.row, order)
    )


def _fragments(count: int, dtype: str, name: str, scope: str) -> tuple[tvm.ir.Var, tirx.Stmt]:
    buffer = tirx.decl_buffer([number(count * SIDE * SIDE)], dtype, name, scope=scope)
    return buffer, tirx.AllocBuffer(buffer)
