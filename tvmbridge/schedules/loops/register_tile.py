"""A tile of sums in registers: which sizes are good, and the statements that clear it, add to it and read it.

A tile of rows × vectors of columns loads one vector for each of its columns and broadcasts one element of each of its
rows, for rows × vectors multiply-adds (the scheme of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.emit import scratch, sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import number
from tvmbridge.schedules.loops.tiling import cut

_MOST_ROWS, _MOST_VECTORS = 14, 8

# (row, vector, lane) of a tile.
Point = Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tirx.Stmt]


@dataclasses.dataclass(frozen=True)
class RegisterTile:
    """Sums of some rows × vectors × lanes; a buffer a row: TVM keeps small ones on the stack, LLVM in registers."""

    vectors: int
    lanes: int
    sums: tuple[tvm.ir.Var, ...]
    made: tuple[tirx.Stmt, ...]

    def each(self, body: Point) -> tirx.Stmt:
        """`body(row, vector, lane)` for every element, written out."""
        return sequence(*(self.row(number(r), body) for r in range(len(self.sums))))

    def row(self, row: tvm.ir.Expr, body: Point) -> tirx.Stmt:
        """`body(row, vector, lane)` for every element of one row."""
        return unrolled(self.vectors, lambda v: vectorized(self.lanes, lambda lane: body(row, v, lane)))

    def clear(self, value: tvm.ir.Expr) -> tirx.Stmt:
        """Set every sum."""
        return self.each(lambda r, v, lane: store(self.sums[int(r)], [v, lane], value))

    def add(self, term: Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]) -> tirx.Stmt:
        """Add `term(row, vector, lane)` to every sum."""
        return self.each(
            lambda r, v, lane: store(self.sums[int(r)], [v, lane], self.total(r, v, lane) + term(r, v, lane))
        )

    def total(self, row: tvm.ir.Expr, vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """One sum; the row is a constant."""
        return tirx.BufferLoad(self.sums[int(row)], [vector, lane])


def register_tile(rows: int, vectors: int, lanes: int, dtype: str) -> RegisterTile:
    """A tile with buffers of its own; `made` are the statements that make them."""
    buffers = [scratch([vectors, lanes], dtype, "sums") for _ in range(rows)]
    return RegisterTile(vectors, lanes, tuple(b for b, _ in buffers), tuple(made for _, made in buffers))


def fitting_tiles(rows: int, vectors: int, registers: int) -> list[tuple[int, int]]:
    """Every (rows, vectors) whose sums, right operand and one left element fit the registers, the best first.

    rows, vectors: of the whole product, which the tiles are cut from.
    """
    found = {
        (cut(rows, high).size, cut(vectors, wide).size)
        for wide in range(1, _MOST_VECTORS + 1)
        for high in range(1, _MOST_ROWS + 1)
        if (high + 1) * wide + 1 <= registers
    }
    return sorted(found, key=lambda tile: (-_worth(rows, vectors, tile), tile))


def _worth(rows: int, vectors: int, tile: tuple[int, int]) -> float:
    """Multiply-adds per load, and a little for many sums: they hide the latency of the multiply-add."""
    high, wide = rows / cut(rows, tile[0]).count, vectors / cut(vectors, tile[1]).count
    return high * wide / (high + wide) + 0.05 * high * wide
