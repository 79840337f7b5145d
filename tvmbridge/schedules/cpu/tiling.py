"""Cuts an extent into tiles of nearly one size, and into vectors: ragged extents at full speed, without predicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.emit import number


@dataclasses.dataclass(frozen=True)
class Tiles:
    """An extent as `count` tiles: first `large` ones of `size`, then the rest, each one smaller."""

    count: int
    size: int
    large: int

    def each(self, index: tvm.ir.Expr, body: Callable[[int, tvm.ir.Expr], tirx.Stmt]) -> tirx.Stmt:
        """`body(size, start)` of the tile with this index: one body, or one for either size behind a branch."""
        if self.large == self.count:
            return body(self.size, index * number(self.size))
        small = body(self.size - 1, index * number(self.size - 1) + number(self.large))
        return tirx.IfThenElse(index < number(self.large), body(self.size, index * number(self.size)), small)


def cut(extent: int, largest: int) -> Tiles:
    """As few tiles of up to `largest` as there can be, as even as they can be."""
    count = -(-extent // largest)
    size = -(-extent // count)
    return Tiles(count, size, extent - count * (size - 1))


@dataclasses.dataclass(frozen=True)
class Vectors:
    """An extent as whole vectors: where the last one would stand over, it starts earlier and overlaps its neighbour."""

    extent: int
    lanes: int

    @property
    def count(self) -> int:
        """How many vectors cover the extent."""
        return -(-self.extent // self.lanes)

    def start(self, index: tvm.ir.Expr) -> tvm.ir.Expr:
        """The first element of a vector."""
        if self.extent % self.lanes == 0:
            return index * number(self.lanes)
        return tirx.min(index * number(self.lanes), number(self.extent - self.lanes))

    def starts(self) -> list[int]:
        """The first elements of all vectors."""
        return [min(index * self.lanes, self.extent - self.lanes) for index in range(self.count)]


def vectors(extent: int, widest: int) -> Vectors:
    """Cut into vectors of `widest` lanes; an extent that is less takes the largest power of two within it."""
    lanes = widest
    while lanes > extent:
        lanes //= 2
    return Vectors(extent, lanes)
