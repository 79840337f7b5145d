"""The loops of a recurrent network as one kernel: LSTM, GRU and RNN, step by step and unit by unit.

One kernel with the time inside, not one graph node a step: 512 steps unrolled would be thousands of kernels, compiled
for minutes and each started for a few microseconds of work. What does not depend on the step before, the product of
all inputs with their weights, is no part of it but a matrix product before it. The loops are plain, and only say by
`AXIS` what they run over; a schedule template tiles them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

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
_HIDDEN = 2  # of the gates of a GRU


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
    """Where the loops are, and the buffers of the sequence.

    states: two of each in one buffer, read and written in turn. between: what a second product needs of the first.
    """

    direction: tvm.ir.Var
    sequence: tvm.ir.Var
    step: tvm.ir.Var
    states: tuple[tvm.ir.Var, ...]
    between: tuple[tvm.ir.Var, ...]

    @property
    def old(self) -> tvm.ir.Expr:
        """Which of the two holds the state before the step."""
        return tirx.floormod(self.step, _number(2))

    def before(self, state: int, unit: tvm.ir.Expr) -> tvm.ir.Expr:
        """A state of a unit before the step."""
        return tirx.BufferLoad(self.states[state], [self.old, unit])


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
        second = len(self._cell.products) > 1
        between = tuple(self._scratch([self._units], name) for name in ("update", "reset_state") if second)

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

        def step(step: tvm.ir.Var) -> tirx.Stmt:
            place = _Place(direction, sequence, step, states, between)
            products = range(len(self._cell.products))
            return _together(self._product(place, index) for index in products)

        return _together(
            [
                *(tirx.AllocBuffer(buffer) for buffer in (*states, *between)),
                _loop(self._units, "unit", start),
                _loop(self._steps, "step", step),
                _loop(self._units, "unit", end),
            ]
        )

    def _product(self, place: _Place, index: int) -> tirx.Stmt:
        """One of a step's products, and what is made of its sums, for each unit."""
        gates = self._cell.products[index]

        def unit(unit: tvm.ir.Var) -> tirx.Stmt:
            sums = [self._scratch([1], "sum") for _ in gates]
            if self._cell.kind == "LSTM":
                results = self._lstm(place, unit, sums)
            elif self._cell.kind == "RNN":
                results = self._rnn(place, unit, sums)
            elif self._cell.reset_after:
                results = self._gru_reset_after(place, unit, sums)
            else:
                results = (self._gru_gates, self._gru_hidden)[index](place, unit, sums)
            return _together([*self._sums(place, index, unit, sums), *results])

        return _loop(self._units, "unit", unit)

    def _sums(self, place: _Place, index: int, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        """The gates' sums: what the input gives, and the state, or the reset one, times the weights."""
        statements: list[tirx.Stmt] = [tirx.AllocBuffer(total) for total in sums]
        for gate, total in zip(self._cell.products[index], sums, strict=True):
            value = self._given(place, gate, unit)
            if self._cell.reset_after and gate == _HIDDEN:
                bias = self._reset_bias
                value = self._zero if bias is None else tirx.BufferLoad(bias, [place.direction, unit])
            statements.append(_set(total, value))

        def add(depth: tvm.ir.Var) -> tirx.Stmt:
            left = place.before(0, depth) if index == 0 else tirx.BufferLoad(place.between[1], [depth])
            right = [
                tirx.BufferLoad(self._weights[index], [place.direction, depth, _number(gate), unit])
                for gate in range(len(sums))
            ]
            return _together(
                _set(total, _get(total) + left * weight) for total, weight in zip(sums, right, strict=True)
            )

        return [*statements, _loop(self._units, "depth", add)]

    def _given(self, place: _Place, gate: int, unit: tvm.ir.Var) -> tvm.ir.Expr:
        """What the input adds to a gate."""
        where = [self._time(place), place.sequence, place.direction, _number(gate), unit]
        return tirx.BufferLoad(self._projected, where)

    def _rnn(self, place: _Place, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        (total,) = sums
        return [_set(total, self._activate(place, 0, _get(total))), *self._keep(place, unit, [total])]

    def _lstm(self, place: _Place, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        """The gates are: input, output, forget, cell."""
        take, output, forget, cell = sums
        before = place.before(1, unit)

        def peep(which: int, state: tvm.ir.Expr, total: tvm.ir.Var) -> tvm.ir.Expr:
            if self._peepholes is None:
                return _get(total)
            return _get(total) + tirx.BufferLoad(self._peepholes, [place.direction, _number(which), unit]) * state

        forgets = self._activate(place, 0, peep(2, before, forget))
        return [
            _set(take, self._activate(place, 0, peep(0, before, take))),
            _set(forget, self._one - _get(take) if self._cell.couple else forgets),
            _set(cell, self._activate(place, 1, _get(cell))),
            _set(cell, _get(forget) * before + _get(take) * _get(cell)),
            _set(output, self._activate(place, 0, peep(1, _get(cell), output))),
            _set(output, _get(output) * self._activate(place, 2, _get(cell))),
            *self._keep(place, unit, [output, cell]),
        ]

    def _gru_gates(self, place: _Place, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        update, reset = (self._activate(place, 0, _get(total)) for total in sums)
        values = (update, reset * place.before(0, unit))
        return [tirx.BufferStore(buffer, value, [unit]) for buffer, value in zip(place.between, values, strict=True)]

    def _gru_hidden(self, place: _Place, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        (hidden,) = sums
        update = tirx.BufferLoad(place.between[0], [unit])
        return self._gru(place, unit, hidden, update, _get(hidden))

    def _gru_reset_after(self, place: _Place, unit: tvm.ir.Var, sums: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        update, reset, hidden = sums
        gates = [_set(total, self._activate(place, 0, _get(total))) for total in (update, reset)]
        value = self._given(place, _HIDDEN, unit) + _get(reset) * _get(hidden)
        return [*gates, *self._gru(place, unit, hidden, _get(update), value)]

    def _gru(
        self, place: _Place, unit: tvm.ir.Var, hidden: tvm.ir.Var, update: tvm.ir.Expr, value: tvm.ir.Expr
    ) -> list[tirx.Stmt]:
        return [
            _set(hidden, self._activate(place, 1, value)),
            _set(hidden, (self._one - update) * _get(hidden) + update * place.before(0, unit)),
            *self._keep(place, unit, [hidden]),
        ]

    def _keep(self, place: _Place, unit: tvm.ir.Var, news: Sequence[tvm.ir.Var]) -> list[tirx.Stmt]:
        """Store the output and the new states; past a sequence's end the output is 0 and the states stay."""
        length = self._length(place)

        def inside(value: tvm.ir.Expr, outside: tvm.ir.Expr) -> tvm.ir.Expr:
            return value if length is None else tirx.Select(place.step < length, value, outside)

        where = [self._time(place), place.direction, place.sequence, unit]
        statements: list[tirx.Stmt] = [tirx.BufferStore(self._outputs[0], inside(_get(news[0]), self._zero), where)]
        for index, (state, new) in enumerate(zip(place.states, news, strict=True)):
            kept = inside(_get(new), place.before(index, unit))
            statements.append(tirx.BufferStore(state, kept, [_number(1) - place.old, unit]))
        return statements

    def _length(self, place: _Place) -> tvm.ir.Expr | None:
        """How many steps the sequence has, whatever the run says within the steps that there are."""
        if self._lengths is None:
            return None
        length = tirx.BufferLoad(self._lengths, [place.sequence]).astype("int64")
        return tirx.max(tirx.min(length, _number(self._steps)), _number(0))

    def _time(self, place: _Place) -> tvm.ir.Expr:
        """The place in time of a step; steps past the end of a reversed sequence stand behind it."""
        length = self._length(place)
        backward: tvm.ir.Expr = _number(self._steps - 1) - place.step
        if length is not None:
            backward = tirx.Select(place.step < length, length - _number(1) - place.step, place.step)
        return self._per_direction(place, [backward if reverse else place.step for reverse in self._cell.reverse])

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

    @property
    def _one(self) -> tvm.ir.Expr:
        return tirx.const(1, self._dtype)

    def _scratch(self, shape: Sequence[int], name: str) -> tvm.ir.Var:
        return tirx.decl_buffer([_number(extent) for extent in shape], self._dtype, name)


def _number(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)


def _get(buffer: tvm.ir.Var) -> tvm.ir.Expr:
    return tirx.BufferLoad(buffer, [_number(0)])


def _set(buffer: tvm.ir.Var, value: tvm.ir.Expr) -> tirx.Stmt:
    return tirx.BufferStore(buffer, value, [_number(0)])


def _together(statements: Iterable[tirx.Stmt]) -> tirx.Stmt:
    parts = list(statements)
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
