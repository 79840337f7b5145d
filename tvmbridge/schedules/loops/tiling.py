"""Cuts an extent into tiles of nearly one size, and into blocks of one size: ragged extents without predicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.expressions import number
from tvmbridge.targets import Target


@dataclasses.dataclass(frozen=True)
class Tiles:
    """An extent as `count` tiles: first `large` ones of `size`, then the rest, each one smaller."""

    count: int
    size: int
    large: int

    @property
    def sizes(self) -> list[int]:
        """Of all tiles, in order."""
        return [self.size - (index >= self.large) for index in range(self.count)]

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
class Blocks:
    """An extent as blocks of `size`, such as vectors: where the last would stand over, it starts earlier and overlaps.

    The extent is no less than the size.
    """

    extent: int
    size: int

    @property
    def count(self) -> int:
        """How many blocks cover the extent."""
        return -(-self.extent // self.size)

    def start(self, index: tvm.ir.Expr) -> tvm.ir.Expr:
        """The first element of a block."""
        if self.extent % self.size == 0:
            return index * number(self.size)
        return tirx.min(index * number(self.size), number(self.extent - self.size))


def lanes_of(target: Target, *dtypes: str) -> int:
    """How many elements of the widest of the types fill a vector register."""
    return target.vector_bits // max(8, *(tvm.DataType(dtype).bits for dtype in dtypes))


def within(extent: int, widest: int) -> int:
    """The most lanes, a power of two up to `widest`, that the extent fills."""
    return min(widest, 1 << (extent.bit_length() - 1))


def divisors(number: int, largest: int) -> list[int]:
    """The divisors of number up to largest, ascending; [1] where number is 0."""
    return [d for d in range(1, largest + 1) if number % d == 0 and d <= number] or [1]
