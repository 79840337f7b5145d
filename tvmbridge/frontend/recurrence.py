"""The loops of a recurrent network as one kernel: LSTM, GRU and RNN, step by step and unit by unit.

One kernel with the time inside, not one graph node a step: 512 steps unrolled would be thousands of kernels, compiled
for minutes and each started for a few microseconds of work. What does not depend on the step before, the product of
all inputs with their weights, is no part of it but a matrix product before it. The loops are plain, and only say by
`AXIS` what they run over; a schedule template tiles them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tvm
from tvm import te, tirx

AXIS = "recurrence"  # annotation of a loop: over "direction", "sequence", "step", "unit" or "depth"

Activation = Callable[[tvm.ir.Expr], tvm.ir.Expr]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one step computes.

    kind: "LSTM", "GRU" or "RNN". activations: of each direction, as many as the kind has, each clipped before already.
    reverse: per direction, whether it starts at the end of a sequence.
    reset_after: of a GRU, whether the state is multiplied by its weights before it is reset (linear_before_reset).
    couple: of an LSTM, whether what it forgets is what it does not take in (input_forget).
    """

    kind: str
    activations: tuple[tuple[Activation, ...], ...]
    reverse: tuple[bool, ...]
    reset_after: bool = False
    couple: bool = False

    @property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """The gates that each product of a step computes; a second one needs the first one's results."""
        if self.kind == "GRU" and not self.reset_after:
            return ((0, 1), (2,))
        return (tuple(range(GATES[self.kind])),)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrence(
    cell: Cell,
    projected: te.Tensor,
    weights: Sequence[te.Tensor],
    states: Sequence[te.Tensor],
    extras: Sequence[te.Tensor | None],
) -> list[te.Tensor]:
    """Every step of every sequence: outputs (steps, directions, sequences, units), then each state after the last.

    projected: (steps, sequences, directions, gates, units), what the inputs and biases add to each gate.
    weights: one for each of the cell's products, (directions, depth, its gates, units).
    states: (directions, sequences, units), the output's and of an LSTM the cell's.
    extras: peepholes (directions, 3, units), the bias that a GRU resets (directions, units), lengths (sequences,).
    """
    steps, sequences, directions, _, units = (int(extent) for extent in projected.shape)
    given = [projected, *weights, *states, *(extra for extra in extras if extra is not None)]
    state = (directions, sequences, units)
    dtype = str(projected.dtype)

    def write(ins: Sequence[tvm.ir.Var], outs: Sequence[tvm.ir.Var]) -> tirx.Stmt:
        operands = iter(ins)
        kernel = _Kernel(
            cell,
            next(operands),
            [next(operands) for _ in weights],
            [next(operands) for _ in states],
            [None if extra is None else next(operands) for extra in extras],
            list(outs),
        )
        return kernel.write()

    shapes = [(steps, directions, sequences, units), *(state for _ in states)]
    made = te.extern(shapes, given, write, dtype=[dtype] * len(shapes), name=cell.kind.lower())
    return list(made)


def _loop(extent: int, axis: str, body: Callable[[tvm.ir.Var], tirx.Stmt]) -> tirx.Stmt:
    var = tvm.ir.Var(axis, "int64")
    zero, end = tirx.IntImm("int64", 0), tirx.IntImm("int64", extent)
    return tirx.For(var, zero, end, tirx.ForKind.SERIAL, body(var), annotations={AXIS: axis})


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the loops are, and the buffers of the sequence: two of each state, one for every other step."""

    direction: tvm.ir.Var
    sequence: tvm.ir.Var
    states: tuple[tvm.ir.Var, ...]


class _Kernel:
    def __init__(
        self,
        cell: Cell,
        projected: tvm.ir.Var,
        weights: Sequence[tvm.ir.Var],
        states: Sequence[tvm.ir.Var],
        extras: Sequence[tvm.ir.Var | None],
        outputs: Sequence[tvm.ir.Var],
    ) -> None:
        self._cell, self._projected, self._weights, self._states = cell, projected, weights, states
        self._peepholes, self._reset_bias, self._lengths = extras
        self._outputs = outputs
        self._steps, self._sequences, self._directions, _, self._units = (int(axis) for axis in projected.shape)
        self._dtype = str(projected.dtype)

    def write(self) -> tirx.Stmt:
        return _loop(
            self._directions, "direction", lambda d: _loop(self._sequences, "sequence", lambda b: self._sequence(d, b))
        )

    def _sequence(self, direction: tvm.ir.Var, sequence: tvm.ir.Var) -> tirx.Stmt:
        states = tuple(self._scratch([2, self._units], "state") for _ in self._states)
        place = _Place(direction, sequence, states)
        between = [self._scratch([self._units], name) for name in ("kept", "reset") if len(self._cell.products) > 1]

        def start(unit: tvm.ir.Var) -> tirx.Stmt:
            return _together(
                tirx.BufferStore(own, tirx.BufferLoad(given, [direction, sequence, unit]), [_number(0), unit])
                for own, given in zip(states, self._states, strict=True)
            )

        def end(unit: tvm.ir.Var) -> tirx.Stmt:
            last = _number(self._steps % 2)
            return _together(
                tirx.BufferStore(result, tirx.BufferLoad(own, [last, unit]), [direction, sequence, unit])
                for own, result in zip(states, self._outputs[1:], strict=True)
            )

        return _together(
            [
                *(tirx.AllocBuffer(buffer) for buffer in (*states, *between)),
                _loop(self._units, "unit", start),
                _loop(self._steps, "step", lambda step: self._step(place, step, between)),
                _loop(self._units, "unit", end),
            ]
        )

    def _step(self, place: _Place, step: tvm.ir.Var, between: Sequence[tvm.ir.Var]) -> tirx.Stmt:
        cell = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self._cell.kind]
        loops = []
        for index, gates in enumerate(self._cell.products):

            def unit(unit: tvm.ir.Var, index: int = index, gates: tuple[int, ...] = gates) -> tirx.Stmt:
                sums = [self._scratch([1], "sum") for _ in gates]
                results = cell(index, place, step, unit, sums, between)
                return _together([*self._sums(index, gates, place, step, unit, sums, between), *results])

            loops.append(_loop(self._units, "unit", unit))
        return _together(loops)

    def _sums(
        self,
        index: int,
        gates: Sequence[int],
        place: _Place,
        step: tvm.ir.Var,
        unit: tvm.ir.Var,
        sums: Sequence[tvm.ir.Var],
        between: Sequence[tvm.ir.Var],
    ) -> list[tirx.Stmt]:
        """The gates' sums: what the input gives, and the state, or the reset one, times the weights."""
        d, time, weight = place.direction, self._time(place, step), self._weights[index]
        first: list[tirx.Stmt] = [tirx.AllocBuffer(total) for total in sums]
        for gate, total in zip(gates, sums, strict=True):
            value: tvm.ir.Expr = tirx.BufferLoad(self._projected, [time, place.sequence, d, _number(gate), unit])
            if self._is_reset_sum(gate):
                value = self._zero if self._reset_bias is None else tirx.BufferLoad(self._reset_bias, [d, unit])
            first.append(_set(total, value))

        def add(depth: tvm.ir.Var) -> tirx.Stmt:
            state = tirx.BufferLoad(place.states[0], [_old(step), depth])
            left = state if index == 0 else tirx.BufferLoad(between[1], [depth])
            return _together(
                _set(total, _get(total) + left * tirx.BufferLoad(weight, [d, depth, _number(k), unit]))
                for k, total in enumerate(sums)
            )

        return [*first, _loop(self._units, "depth", add)]

    def _is_reset_sum(self, gate: int) -> bool:
        return self._cell.kind == "GRU" and self._cell.reset_after and gate == 2

    def _rnn(self, _index: int, place: _Place, step: tvm.ir.Var, unit: tvm.ir.Var, *buffers: object) -> list[tirx.Stmt]:
        (total,) = buffers[0]  # type: ignore[misc]
        return [_set(total, self._activate(place, 0, _get(total))), *self._keep(place, step, unit, [total])]

    def _lstm(
        self,
        _index: int,
        place: _Place,
        step: tvm.ir.Var,
        unit: tvm.ir.Var,
        sums: Sequence[tvm.ir.Var],
        _between: Sequence[tvm.ir.Var],
    ) -> list[tirx.Stmt]:
        """The gates are: input, output, forget, cell."""
        take, output, forget, cell = sums
        before = tirx.BufferLoad(place.states[1], [_old(step), unit])

        def peep(which: int, state: tvm.ir.Expr, total: tvm.ir.Var) -> tvm.ir.Expr:
            if self._peepholes is None:
                return _get(total)
            return _get(total) + tirx.BufferLoad(self._peepholes, [place.direction, _number(which), unit]) * state

        forgets = self._activate(place, 0, peep(2, before, forget))
        return [
            _set(take, self._activate(place, 0, peep(0, before, take))),
            _set(forget, tirx.const(1, self._dtype) - _get(take) if self._cell.couple else forgets),
            _set(cell, self._activate(place, 1, _get(cell))),
            _set(cell, _get(forget) * before + _get(take) * _get(cell)),
            _set(output, self._activate(place, 0, peep(1, _get(cell), output))),
            _set(output, _get(output) * self._activate(place, 2, _get(cell))),
            *self._keep(place, step, unit, [output, cell]),
        ]

    def _gru(
        self,
        index: int,
        place: _Place,
        step: tvm.ir.Var,
        unit: tvm.ir.Var,
        sums: Sequence[tvm.ir.Var],
        between: Sequence[tvm.ir.Var],
    ) -> list[tirx.Stmt]:
        """The gates are: update, reset, hidden."""
        before = tirx.BufferLoad(place.states[0], [_old(step), unit])
        one = tirx.const(1, self._dtype)
        if len(self._cell.products) > 1 and index == 0:
            update, reset = sums
            kept, reset_state = between
            return [
                tirx.BufferStore(kept, self._activate(place, 0, _get(update)), [unit]),
                tirx.BufferStore(reset_state, self._activate(place, 0, _get(reset)) * before, [unit]),
            ]
        hidden, statements = sums[-1], []
        keep: tvm.ir.Expr
        if len(self._cell.products) > 1:
            keep = tirx.BufferLoad(between[0], [unit])
            total = _get(hidden)
        else:
            update, reset, _ = sums
            statements = [
                _set(update, self._activate(place, 0, _get(update))),
                _set(reset, self._activate(place, 0, _get(reset))),
            ]
            keep, d = _get(update), place.direction
            time = self._time(place, step)
            given = tirx.BufferLoad(self._projected, [time, place.sequence, d, _number(2), unit])
            total = given + _get(reset) * _get(hidden)
        return [
            *statements,
            _set(hidden, self._activate(place, 1, total)),
            _set(hidden, (one - keep) * _get(hidden) + keep * before),
            *self._keep(place, step, unit, [hidden]),
        ]

    def _keep(self, place: _Place, step: tvm.ir.Var, unit: tvm.ir.Var, news: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        """Store the output and the new states; past a sequence's end the output is 0 and the states stay."""
        inside = self._inside(place, step)
        output = _get(news[0]) if inside is None else tirx.Select(inside, _get(news[0]), self._zero)
        where = [self._time(place, step), place.direction, place.sequence, unit]
        statements: list[tirx.Stmt] = [tirx.BufferStore(self._outputs[0], output, where)]
        for state, new in zip(place.states, news, strict=True):
            old, value = tirx.BufferLoad(state, [_old(step), unit]), _get(new)
            kept = value if inside is None else tirx.Select(inside, value, old)
            statements.append(tirx.BufferStore(state, kept, [_number(1) - _old(step), unit]))
        return statements

    def _length(self, place: _Place) -> tvm.ir.Expr | None:
        """How many steps the sequence has, whatever the run says within the steps that there are."""
        if self._lengths is None:
            return None
        length = tirx.BufferLoad(self._lengths, [place.sequence]).astype("int64")
        return tirx.max(tirx.min(length, _number(self._steps)), _number(0))

    def _inside(self, place: _Place, step: tvm.ir.Var) -> tvm.ir.Expr | None:
        length = self._length(place)
        return None if length is None else step < length

    def _time(self, place: _Place, step: tvm.ir.Var) -> tvm.ir.Expr:
        """The place in time of a step; steps past the end of a reversed sequence stand behind it."""
        length = self._length(place)
        backward: tvm.ir.Expr = _number(self._steps - 1) - step
        if length is not None:
            backward = tirx.Select(step < length, length - _number(1) - step, step)
        return self._per_direction(place, [backward if reverse else step for reverse in self._cell.reverse])

    def _activate(self, place: _Place, which: int, value: tvm.ir.Expr) -> tvm.ir.Expr:
        activations = [functions[which] for functions in self._cell.activations]
        if all(activation == activations[0] for activation in activations):
            return activations[0](value)
        return self._per_direction(place, [activation(value) for activation in activations])

    def _per_direction(self, place: _Place, values: Sequence[tvm.ir.Expr]) -> tvm.ir.Expr:
        if len(values) == 1 or values[0].same_as(values[1]):
            return values[0]
        return tirx.Select(place.direction.equal(_number(0)), values[0], values[1])

    @property
    def _zero(self) -> tvm.ir.Expr:
        return tirx.const(0, self._dtype)

    def _scratch(self, shape: Sequence[int], name: str) -> tvm.ir.Var:
        return tirx.decl_buffer([_number(extent) for extent in shape], self._dtype, name)


def _number(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)


def _old(step: tvm.ir.Var) -> tvm.ir.Expr:
    """Which of the two buffers holds the state before a step."""
    return tirx.floormod(step, _number(2))


def _get(buffer: tvm.ir.Var) -> tvm.ir.Expr:
    return tirx.BufferLoad(buffer, [_number(0)])


def _set(buffer: tvm.ir.Var, value: tvm.ir.Expr) -> tirx.Stmt:
    return tirx.BufferStore(buffer, value, [_number(0)])


def _together(statements: Sequence[tirx.Stmt] | object) -> tirx.Stmt:
    parts = list(statements)  # type: ignore[call-overload]
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
