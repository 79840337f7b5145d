"""One operand of a product on its way from global memory through registers to the memory that a block shares.

The loads of a step are issued before the step ahead of it is multiplied, so that they arrive meanwhile; neighbouring
threads load neighbouring elements, up to 16 bytes each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.gpu.launch import guarded, registers, shared
from tvmbridge.schedules.loops.emit import store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import is_choice, loads, number, variables
from tvmbridge.schedules.loops.indices import Linear, analyzer, linear, offset, step, whole
from tvmbridge.schedules.loops.stages import Axis

_VECTOR_BYTES = 16  # of the widest load

# The operand's value at (place along its tile, step of the depth, term of that step, element of a vector from there).
Value = Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tile of `extent` places × `depth` terms lies in shared memory, and is loaded.

    along_depth: whether neighbours in global memory are terms of the depth, or else places.
    vector: how many of them one load takes.
    depth_first: whether neighbours in shared memory are places, and so a row of them holds one term.
    padding: elements behind each row there: a row later is another bank.
    """

    extent: int
    depth: int
    along_depth: bool
    vector: int
    depth_first: bool
    padding: int

    @property
    def row(self) -> int:
        """Elements from one row in shared memory to the next."""
        return (self.extent if self.depth_first else self.depth) + self.padding

    @property
    def size(self) -> int:
        """Elements in shared memory."""
        return self.row * (self.depth if self.depth_first else self.extent)

    def index(self, place: tvm.ir.Expr, term: tvm.ir.Expr) -> tvm.ir.Expr:
        """Where an element lies in shared memory."""
        row, column = (term, place) if self.depth_first else (place, term)
        return row * number(self.row) + column


class Staged:
    """An operand's tile in shared memory, with the registers in which its next step waits."""

    def __init__(self, name: str, layout: Layout, dtype: str, threads: int, value: Value) -> None:
        self.layout, self.dtype = layout, dtype
        self._threads, self._value = threads, value
        self._loads = -(-layout.extent * layout.depth // (layout.vector * threads))
        self.tile, self._tile_made = shared(layout.size, dtype, f"{name}_tile")
        self._waiting, self._waiting_made = registers(self._loads * layout.vector, dtype, f"{name}_next")

    @property
    def made(self) -> list[tirx.Stmt]:
        """The statements that make its buffers."""
        return [self._tile_made, self._waiting_made]

    def load(self, thread: tvm.ir.Expr, step: tvm.ir.Expr) -> tirx.Stmt:
        """Bring this thread's part of a step into registers."""
        lanes = number(self.layout.vector)

        def one(i: tvm.ir.Expr) -> tirx.Stmt:
            place, term = self._where(i * number(self._threads) + thread)

            def lane(lane: tvm.ir.Expr) -> tirx.Stmt:
                return store(self._waiting, [i * lanes + lane], self._value(place, step, term, lane))

            return guarded(self._has_part(i, thread), vectorized(self.layout.vector, lane))

        return unrolled(self._loads, one)

    def put(self, thread: tvm.ir.Expr) -> tirx.Stmt:
        """Store what waits in registers into shared memory."""
        lanes = number(self.layout.vector)
        in_order = self.layout.along_depth != self.layout.depth_first
        write = vectorized if in_order else unrolled

        def one(i: tvm.ir.Expr) -> tirx.Stmt:
            place, term = self._where(i * number(self._threads) + thread)

            def lane(lane: tvm.ir.Expr) -> tirx.Stmt:
                at = (place, term + lane) if self.layout.along_depth else (place + lane, term)
                waiting = tirx.BufferLoad(self._waiting, [i * lanes + lane])
                return store(self.tile, [self.layout.index(*at)], waiting)

            return guarded(self._has_part(i, thread), write(self.layout.vector, lane))

        return unrolled(self._loads, one)

    def _where(self, index: tvm.ir.Expr) -> tuple[tvm.ir.Expr, tvm.ir.Expr]:
        """Place and term of the first element of a load."""
        layout = self.layout
        run = (layout.depth if layout.along_depth else layout.extent) // layout.vector
        across = index if run == 1 else tirx.floordiv(index, number(run))
        along = (number(0) if run == 1 else tirx.floormod(index, number(run))) * number(layout.vector)
        return (across, along) if layout.along_depth else (along, across)

    def _has_part(self, i: tvm.ir.Expr, thread: tvm.ir.Expr) -> tvm.ir.Expr | None:
        """Whether the thread has something to do in its load `i`; None where every thread has."""
        vectors = self.layout.extent * self.layout.depth // self.layout.vector
        if vectors % self._threads == 0:
            return None
        return i * number(self._threads) + thread < number(vectors)


def widest_vector(value: tvm.ir.Expr, run: Axis, axes: Sequence[Axis], longest: int) -> int:
    """How many neighbouring elements along `run` can be loaded at once, a power of two up to `longest`; 1 for none.

    value: an expression of one load. axes: all that it depends on. Elements that only lie together for some places, or
    where what is read is decided element by element, are loaded one by one.
    """
    (load,) = loads(value)
    widest = max(tvm.DataType(str(expr.ty.dtype)).bits for expr in (load, value)) // 8
    where = _place(load, axes)
    if where.others or where.steps.get(run.var) != 1 or run.var in _deciding(value):
        return 1
    steps = [where.constant, run.extent, *(step for var, step in where.steps.items() if not var.same_as(run.var))]
    lanes = min(longest, max(1, _VECTOR_BYTES // widest))
    while any(step % lanes for step in steps):
        lanes //= 2
    return lanes


def step_of(value: tvm.ir.Expr, axis: Axis, axes: Sequence[Axis]) -> int | None:
    """By how many elements its one load moves when the axis moves by one; None where that varies."""
    (load,) = loads(value)
    where = _place(load, axes)
    return where.steps.get(axis.var, 0) if not where.others else step(offset(load), axis, tuple(axes))


def _place(load: tvm.ir.TensorLoad, axes: Sequence[Axis]) -> Linear:
    return linear(analyzer(whole(axes)).simplify(offset(load)))


def _deciding(value: tvm.ir.Expr) -> list[tvm.ir.Var]:
    """The variables that conditions in the expression depend on."""
    found: list[tvm.ir.Var] = []
    tvm_ffi.structural_walk(
        value, (tvm.ir.Call, lambda call: found.extend(variables(call.args[0])) if is_choice(call) else None)
    )
    return found
