"""Writes the steps of a row as loops: vectors along the row, or across as many rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.emit import loop, nest, scratch, sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, number, substitute
from tvmbridge.schedules.loops.shares import Share, shared
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import within
from tvmbridge.schedules.reading.invariants import without_invariants
from tvmbridge.schedules.reading.row_steps import Step

# (position, lanes) → the statement for as many neighbours from there on
Piece = Callable[[tvm.ir.Expr, int], tirx.Stmt]


@dataclasses.dataclass(frozen=True)
class Block:
    """What is computed at a time: one row, or `vectors` × `width` rows side by side.

    rows: the values of the row axes; of `across`, the axis along which rows lie side by side, the first of them.
    width: lanes of a whole vector. accumulators: how many vectors are accumulated independently of each other.
    """

    rows: Mapping[tvm.ir.Var, tvm.ir.Expr]
    across: tvm.ir.Var | None
    vectors: int
    width: int
    accumulators: int

    @property
    def shape(self) -> tuple[int, int]:
        """The (vectors, lanes) of rows."""
        return (self.vectors, self.width) if self.across is not None else (1, 1)


def row_loops(
    steps: Sequence[Step], block: Callable[[tvm.ir.Expr], Block], count: int, share: Share | None
) -> tirx.Stmt:
    """The steps of `count` blocks, or of one task's share of them, one block after another.

    What its steps hand on is in buffers that the blocks share.
    """
    everything = [each for step in steps for each in without_invariants(step)]
    held: dict[tvm.ir.Var, tvm.ir.Var] = {}
    allocations: list[tirx.Stmt] = []
    shape = block(number(0)).shape
    for step in everything:
        if step.held:
            extents = [*(int(extent) for extent in step.buffer.shape), *shape]
            held[step.buffer], allocation = scratch(extents, str(step.buffer.dtype), step.buffer.name)
            allocations.append(allocation)

    def body(place: tvm.ir.Expr) -> tirx.Stmt:
        return sequence(*(_Writer(block(place), held, step).written() for step in everything))

    return sequence(*allocations, loop(count, body) if share is None else shared(count, share, body))


class _Writer:
    """One step of one block."""

    def __init__(self, block: Block, held: Mapping[tvm.ir.Var, tvm.ir.Var], step: Step) -> None:
        self.block, self.held, self.step = block, held, step
        self.dtype = str(step.buffer.dtype)

    def _at(self, expr: tvm.ir.Expr, axes: Values, vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """The expression at a point of the step's axes, in the block's row (vector, lane)."""
        values: Values = {**self.block.rows, **axes}
        if self.block.across is not None:
            values[self.block.across] = values[self.block.across] + vector * self.block.width + lane

        def placed(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
            buffer = self.held.get(load.source)
            return load if buffer is None else tirx.BufferLoad(buffer, [*load.indices, vector, lane])

        return tvm_ffi.structural_map(substitute(expr, values), (tvm.ir.TensorLoad, placed))

    def _stored(
        self, axes: Values, vector: tvm.ir.Expr, lane: tvm.ir.Expr, value: tvm.ir.Expr | None = None
    ) -> tirx.Stmt:
        """Store the value, or else the step's own, at a point."""
        value = self._at(self.step.value, axes, vector, lane) if value is None else value
        indices = [self._at(index, axes, vector, lane) for index in self.step.indices]
        if self.step.held:
            return store(self.held[self.step.buffer], [*indices, vector, lane], value)
        return store(self.step.buffer, indices, value)

    def _combined(self, left: tvm.ir.Expr, right: tvm.ir.Expr) -> tvm.ir.Expr:
        assert self.step.combine is not None
        return self.step.combine(left, right)

    def written(self) -> tirx.Stmt:
        """The step's loops."""
        if self.block.across is not None:
            return self._map_across() if self.step.combine is None else self._reduce_across()
        return self._map_along() if self.step.combine is None else self._reduce_along()

    def _lanes(self, body: Callable[[tvm.ir.Expr, tvm.ir.Expr], tirx.Stmt]) -> tirx.Stmt:
        vectors, width = self.block.shape
        return unrolled(vectors, lambda vector: vectorized(width, lambda lane: body(vector, lane)))

    def _map_across(self) -> tirx.Stmt:
        def point(axes: Values) -> tirx.Stmt:
            return self._lanes(lambda vector, lane: self._stored(axes, vector, lane))

        return nest(self.step.inner, point)

    def _reduce_across(self) -> tirx.Stmt:
        *outer, last = self.step.reduced or (Axis(tvm.ir.Var("single", "int64"), 1),)
        copies = max(1, min(self.block.accumulators // self.block.vectors, last.extent))
        sums, allocation = scratch([copies, *self.block.shape], self.dtype, "accumulator")

        def accumulated(copy: tvm.ir.Expr, axes: Values) -> tirx.Stmt:
            def lanes(vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
                place = [copy, vector, lane]
                term = self._at(self.step.value, axes, vector, lane)
                return store(sums, place, self._combined(tirx.BufferLoad(sums, place), term))

            return self._lanes(lanes)

        def reduced(axes: Values) -> tirx.Stmt:
            whole, rest = divmod(last.extent, copies)
            steps = loop(
                whole,
                lambda i: unrolled(copies, lambda copy: accumulated(copy, {**axes, last.var: i * copies + copy})),
            )
            ragged = unrolled(rest, lambda copy: accumulated(copy, {**axes, last.var: number(whole * copies) + copy}))
            return sequence(steps, ragged if rest else None)

        def cleared(copy: tvm.ir.Expr) -> tirx.Stmt:
            return self._lanes(lambda vector, lane: store(sums, [copy, vector, lane], self.step.init))

        def added(copy: tvm.ir.Expr) -> tirx.Stmt:
            def lanes(vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
                both = [tirx.BufferLoad(sums, [place, vector, lane]) for place in (number(0), copy + 1)]
                return store(sums, [number(0), vector, lane], self._combined(*both))

            return self._lanes(lanes)

        def result(vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
            return self._stored({}, vector, lane, tirx.BufferLoad(sums, [number(0), vector, lane]))

        return sequence(
            allocation,
            unrolled(copies, cleared),
            nest(outer, reduced),
            unrolled(copies - 1, added) if copies > 1 else None,
            self._lanes(result),
        )

    def _map_along(self) -> tirx.Stmt:
        if not self.step.inner:
            return self._stored({}, number(0), number(0))
        *outer, last = self.step.inner

        def lane_at(axes: Values) -> Piece:
            return lambda start, lanes: vectorized(
                lanes, lambda lane: self._stored({**axes, last.var: start + lane}, number(0), number(0))
            )

        return nest(outer, lambda axes: _pieces(last.extent, self.block, lane_at(axes)))

    def _reduce_along(self) -> tirx.Stmt:
        *outer, last = self.step.reduced or (Axis(tvm.ir.Var("single", "int64"), 1),)
        width = within(last.extent, self.block.width)
        count = min(self.block.accumulators, last.extent // width)
        whole = last.extent // (count * width)
        vectors_left = last.extent // width - whole * count
        tail = [piece for piece in _halves(width) if last.extent % width & piece]
        sums, allocation = scratch([count, width], self.dtype, "accumulator")
        tails = {piece: scratch([piece], self.dtype, f"accumulator{piece}") for piece in tail}

        def accumulated(
            buffer: tvm.ir.Var, place: list[tvm.ir.Expr], start: tvm.ir.Expr, lanes: int, axes: Values
        ) -> tirx.Stmt:
            def body(lane: tvm.ir.Expr) -> tirx.Stmt:
                term = self._at(self.step.value, {**axes, last.var: start + lane}, number(0), number(0))
                return store(buffer, [*place, lane], self._combined(tirx.BufferLoad(buffer, [*place, lane]), term))

            return vectorized(lanes, body)

        def reduced(axes: Values) -> tirx.Stmt:
            def vectors(first: tvm.ir.Expr, number_of_them: int) -> tirx.Stmt:
                return unrolled(number_of_them, lambda i: accumulated(sums, [i], (first + i) * width, width, axes))

            position = last.extent // width * width
            statements = [loop(whole, lambda i: vectors(i * count, count))]
            if vectors_left:
                statements.append(vectors(number(whole * count), vectors_left))
            for piece in tail:
                statements.append(accumulated(tails[piece][0], [], number(position), piece, axes))
                position += piece
            return sequence(*statements)

        def cleared(buffer: tvm.ir.Var, place: list[tvm.ir.Expr], lanes: int) -> tirx.Stmt:
            return vectorized(lanes, lambda lane: store(buffer, [*place, lane], self.step.init))

        def folded(into: int, other: tvm.ir.Var, before: list[tvm.ir.Expr], offset: int) -> tirx.Stmt:
            def body(lane: tvm.ir.Expr) -> tirx.Stmt:
                place = [number(0), lane]
                both = tirx.BufferLoad(sums, place), tirx.BufferLoad(other, [*before, lane + offset])
                return store(sums, place, self._combined(*both))

            return vectorized(into, body)

        folds = [folded(width, sums, [number(i)], 0) for i in range(1, count)]
        for piece in _halves(width):
            folds.append(folded(piece, sums, [number(0)], piece))
            if piece in tails:
                folds.append(folded(piece, tails[piece][0], [], 0))
        return sequence(
            allocation,
            *(made for _, made in tails.values()),
            unrolled(count, lambda i: cleared(sums, [i], width)),
            *(cleared(buffer, [], piece) for piece, (buffer, _) in tails.items()),
            nest(outer, reduced),
            *folds,
            self._stored({}, number(0), number(0), tirx.BufferLoad(sums, [number(0), number(0)])),
        )


def _pieces(extent: int, block: Block, piece: Piece) -> tirx.Stmt:
    """A loop over several vectors a step, then the vectors that are left; the last may overlap the one before it.

    Where the extent is less than a vector, narrower ones, each half of the one before it.
    """
    width = within(extent, block.width)
    vectors = extent // width
    several = min(block.accumulators, vectors)
    whole, left = divmod(vectors, several)
    statements = [loop(whole, lambda i: unrolled(several, lambda u: piece((i * several + u) * width, width)))]
    if left:
        statements.append(unrolled(left, lambda u: piece((number(whole * several) + u) * width, width)))
    if extent % width:
        statements.append(piece(number(extent - width), width))
    return sequence(*statements)


def _halves(width: int) -> list[int]:
    """The powers of two below the width, descending."""
    return [1 << bit for bit in reversed(range(width.bit_length() - 1))]
