"""Writes rows for a GPU: a group of threads for each row, which goes through all steps without leaving the block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.gpu.exchange import Groups
from tvmbridge.schedules.gpu.lanes import in_lane, widest_lanes
from tvmbridge.schedules.gpu.launch import all_of, guarded, launch, registers, shared
from tvmbridge.schedules.gpu.rows.elements import ElementStep
from tvmbridge.schedules.loops.emit import loop, sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, loads, number, substitute
from tvmbridge.schedules.loops.indices import coordinates
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.reading.row_steps import Rows

MOST_CHUNKS = 32  # elements of a thread up to which they are written out, and can be in registers


def write_rows(rows: Rows, steps: Sequence[ElementStep], groups: Groups, widest: int) -> tirx.Stmt:
    """A launch with a group of threads for each row. widest: most elements that a thread loads and stores at once."""
    lanes = min((_lanes(step, widest) for step in steps if step.element is not None), default=1)
    axes = [axis for axis in rows.axes if axis is not rows.across]
    beside = rows.across or Axis(tvm.ir.Var("row", "int64"), math.prod(axis.extent for axis in axes))
    blocks = Axis(tvm.ir.Var("rows", "int64"), -(-beside.extent // groups.count))
    grid = [*axes, blocks] if rows.across is not None else [blocks]

    def body(block: tvm.ir.Var, thread: tvm.ir.Var) -> tirx.Stmt:
        group, member = groups.place(thread)
        places = coordinates(block, grid)
        row = places.pop(blocks.var) * number(groups.count) + group
        live = None
        if beside.extent % groups.count:
            # Threads without a row do the last one again, and store nothing: all meet at the barriers.
            live, row = row < number(beside.extent), tirx.min(row, number(beside.extent - 1))
        places |= {rows.across.var: row} if rows.across is not None else coordinates(row, axes)
        return _Row(groups, lanes, places, live, thread, member, {}, {}).written(steps)

    return launch(math.prod(axis.extent for axis in grid), groups.threads, body)


def _lanes(step: ElementStep, widest: int) -> int:
    assert step.element is not None
    stored = [step.place] if step.is_map else []
    return widest_lanes([step.value], stored, step.element, step.count, widest)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One thread of a group. held: the register of each buffer. staging: shared memory by type, to hand values over."""

    groups: Groups
    lanes: int
    places: Values
    live: tvm.ir.Expr | None
    thread: tvm.ir.Expr
    member: tvm.ir.Expr
    held: dict[tvm.ir.Var, tvm.ir.Var]
    staging: dict[str, tvm.ir.Var]

    def written(self, steps: Sequence[ElementStep]) -> tirx.Stmt:
        """All steps in order."""
        read = {load.source for step in steps for load in loads(step.value)}
        made: list[tirx.Stmt] = []
        statements = []
        for step in steps:
            if step.combine is not None or step.buffer in read:
                size = self._chunks(step) * self.lanes if step.is_map else 1
                self.held[step.buffer], allocation = registers(size, str(step.buffer.dtype), "held")
                made.append(allocation)
            if step.combine is not None and self.groups.parts > 1:
                dtype = str(step.buffer.dtype)
                if dtype not in self.staging:
                    size = self.groups.count * self.groups.parts
                    self.staging[dtype], allocation = shared(size, dtype, "staging")
                    made.append(allocation)
            statements.append(self._step(step))
        return sequence(*made, *statements)

    def _step(self, step: ElementStep) -> tirx.Stmt:
        if step.combine is not None:
            return self._reduced(step)
        if step.element is None:
            return self._once(step, self._at(step, step.value, None, number(0)))
        return self._each(step, lambda chunk: vectorized(self.lanes, lambda lane: self._kept(step, chunk, lane)))

    def _chunks(self, step: ElementStep) -> int:
        return -(-step.count // (self.groups.members * self.lanes))

    def _each(self, step: ElementStep, body: Callable[[tvm.ir.Expr], tirx.Stmt]) -> tirx.Stmt:
        """`body` for each vector of elements that is the thread's."""
        chunks = self._chunks(step)
        vectors = step.count // self.lanes

        def one(chunk: tvm.ir.Expr) -> tirx.Stmt:
            inside = self._vector(chunk) < number(vectors) if vectors % self.groups.members else None
            return guarded(inside, body(chunk))

        return unrolled(chunks, one) if chunks <= MOST_CHUNKS else loop(chunks, one)

    def _vector(self, chunk: tvm.ir.Expr) -> tvm.ir.Expr:
        return chunk * number(self.groups.members) + self.member

    def _at(self, step: ElementStep, expr: tvm.ir.Expr, chunk: tvm.ir.Expr | None, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        """The expression for one element of the thread; chunk: None where there is one value a row."""
        if chunk is not None:
            assert step.element is not None
            expr = in_lane(expr, step.element, self.lanes, self._vector(chunk), lane)

        def from_register(load: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
            register = self.held.get(load.source)
            if register is None:
                return load
            own = int(register.shape[0]) > 1 and chunk is not None
            return tirx.BufferLoad(register, [chunk * number(self.lanes) + lane if own else number(0)])

        return tvm_ffi.structural_map(substitute(expr, self.places), (tvm.ir.TensorLoad, from_register))

    def _kept(self, step: ElementStep, chunk: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
        """One element stored, in a register, in the output or in both."""
        value = self._at(step, step.value, chunk, lane)
        register = self.held.get(step.buffer)
        if step.held:
            assert register is not None
            return store(register, [chunk * number(self.lanes) + lane], value)
        assert step.element is not None
        element = self._vector(chunk) * number(self.lanes) + lane
        indices = [substitute(index, {**self.places, step.element: element}) for index in step.indices]
        if register is None:
            return guarded(self.live, store(step.buffer, indices, value))
        own = [chunk * number(self.lanes) + lane]
        kept = store(register, own, value)
        return sequence(kept, guarded(self.live, store(step.buffer, indices, tirx.BufferLoad(register, own))))

    def _once(self, step: ElementStep, value: tvm.ir.Expr) -> tirx.Stmt:
        """What there is one of in a row: in every thread's register, and stored by the first."""
        register = self.held.get(step.buffer)
        keep = None
        if register is not None:
            keep = store(register, [number(0)], value)
            value = tirx.BufferLoad(register, [number(0)])
        if step.held:
            return sequence(keep)
        indices = [substitute(index, self.places) for index in step.indices]
        first = self.member.equal(number(0)) if self.groups.members > 1 else None
        return sequence(keep, guarded(all_of([first, self.live]), store(step.buffer, indices, value)))

    def _reduced(self, step: ElementStep) -> tirx.Stmt:
        assert step.combine is not None and step.init is not None
        combine, dtype = step.combine, str(step.buffer.dtype)
        lanes = self.lanes if step.element is not None else 1
        sums, allocation = registers(lanes, dtype, "sums")

        def added(chunk: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
            return store(sums, [lane], combine(tirx.BufferLoad(sums, [lane]), self._at(step, step.value, chunk, lane)))

        def folded(lane: tvm.ir.Expr) -> tirx.Stmt:
            both = [tirx.BufferLoad(sums, [place]) for place in (number(0), lane + number(1))]
            return store(sums, [number(0)], combine(*both))

        steps = [allocation, vectorized(lanes, lambda lane: store(sums, [lane], step.init))]
        if step.element is None:  # of one term, which is the same in all threads
            steps.append(store(sums, [number(0)], combine(step.init, self._at(step, step.value, None, number(0)))))
        else:
            steps.append(self._each(step, lambda chunk: vectorized(lanes, lambda lane: added(chunk, lane))))
            steps += [unrolled(lanes - 1, folded)] if lanes > 1 else []
            steps.append(self.groups.combine(sums, self.staging.get(dtype), self.thread, combine))
        return sequence(*steps, self._once(step, tirx.BufferLoad(sums, [number(0)])))
