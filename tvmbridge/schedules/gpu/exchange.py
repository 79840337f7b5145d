"""How the threads of a block hand values to one another: what those of a group have, combined.

TVM puts the barriers, before what has been stored in shared memory is read, and before it is stored over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.launch import WARP
from tvmbridge.schedules.loops.emit import sequence, store, unrolled
from tvmbridge.schedules.loops.expressions import number

Combine = Callable[[tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]

_SHUFFLED = frozenset(
    {"int32", "uint32", "int64", "uint64", "float16", "float32", "float64"}
)  # by the hardware's types


@dataclasses.dataclass(frozen=True)
class Groups:
    """The threads of a block as `count` groups of `members` that work on one thing each.

    side_by_side: neighbouring threads are of neighbouring groups, or else of one group. Both numbers are powers of two,
    and their product is a multiple of a warp.
    """

    count: int
    members: int
    side_by_side: bool

    @property
    def threads(self) -> int:
        """Of the block."""
        return self.count * self.members

    def place(self, thread: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        """(which group, which member of it) a thread is."""
        inner = number(self.count if self.side_by_side else self.members)
        outer_place, inner_place = tirx.floordiv(thread, inner), tirx.floormod(thread, inner)
        return (inner_place, outer_place) if self.side_by_side else (outer_place, inner_place)

    @property
    def parts(self) -> int:
        """Values of a group that go through shared memory: of its members, or of its warps."""
        return self.members if self.side_by_side else self.members // WARP if self.members > WARP else 1

    def combine(
        self, value: tvm.ir.Var, staging: tvm.ir.Var | None, thread: tvm.ir.Expr, combine: Combine
    ) -> tirx.Stmt:
        """Give every member, in its register `value`, what all of its group have there, combined in one order.

        staging: shared memory for `count * parts` values where there is more than one part.
        """
        held = tirx.BufferLoad(value, [number(0)])
        steps: list[tirx.Stmt] = []
        if not self.side_by_side:
            steps += [
                store(value, [number(0)], combine(held, _from_lane(held, 1 << bit)))
                for bit in reversed(range(min(self.members, WARP).bit_length() - 1))
            ]
        if self.parts == 1:
            return sequence(*steps)
        assert staging is not None
        group, member = self.place(thread)

        def slot(part: tvm.ir.Expr) -> list[tvm.ir.Expr]:
            return [part * number(self.count) + group if self.side_by_side else group * number(self.parts) + part]

        part = member if self.side_by_side else tirx.floordiv(member, number(WARP))
        write = store(staging, slot(part), held)
        first = store(value, [number(0)], tirx.BufferLoad(staging, slot(number(0))))

        def rest(i: tvm.ir.Expr) -> tirx.Stmt:
            return store(value, [number(0)], combine(held, tirx.BufferLoad(staging, slot(i + number(1)))))

        one_of_warp = None if self.side_by_side else tirx.floormod(member, number(WARP)).equal(number(0))
        return sequence(
            *steps,
            write if one_of_warp is None else tirx.IfThenElse(one_of_warp, write, None),
            first,
            unrolled(self.parts - 1, rest),
        )


def _from_lane(value: tvm.ir.Expr, mask: int) -> tvm.ir.Expr:
    """The value of the thread of the warp whose number differs from this one's by these bits."""
    dtype = str(value.ty.dtype)
    carried = value if dtype in _SHUFFLED else tirx.Cast("int32", value)
    everyone = tirx.const(0xFFFFFFFF, "uint32")
    found = tirx.op.tvm_warp_shuffle_xor(everyone, carried, mask, WARP, WARP)
    return found if dtype in _SHUFFLED else tirx.Cast(dtype, found)
