"""Loop and Scan that stay loops: too long to unroll, or of a length that the run decides.

Relax has no loop, and a function that calls itself needs more of the C stack with each iteration. So the body is one
function, and above it are levels: each calls the one below `_FAN` times, or as often as the loop goes on. The stack is
as deep as there are levels, 21 for any number of iterations; what the body reads of the graph around it is passed down.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Operator, Tensor, Value, carrier, numpy_type
from tvmbridge.frontend.sizes import MAX_TENSOR_BYTES
from tvmbridge.frontend.trace.bodies import Bodies
from tvmbridge.frontend.trace.loop_functions import LoopFunctions

_FAN = 8
_MOST_LEVELS = 21  # _FAN ** 21 is 2 ** 63
_MOST_TRIPS = 10**9  # that nothing but the count ends, loops around multiplied: an hour of the shortest body
# The index of an iteration and the states, as the body sees them → its condition, states and what it collects.
Turned = tuple[Tensor | None, list[Value], list[Tensor]]
Turn = Callable[[Bodies, Tensor, list[Tensor], dict[str, Value]], Turned]


def count(
    op: Operator, bodies: Bodies, trips: int, states: list[Tensor], turn: Turn
) -> tuple[list[Value], list[Tensor]]:
    """A loop of known length: its last states, and what each iteration gives, stacked along a new first axis.

    Each level joins what the one below it has collected: an element is copied once for each level.
    """
    around = math.prod(bodies.around.trips)
    if trips * around > _MOST_TRIPS:
        op.refuse(f"it would run more than {_MOST_TRIPS:,} times")
    loop = LoopFunctions.of(op, bodies.inside_loop(trips), [Tensor.known(np.array(0, np.int64)), *states])
    collected: list[Tensor] = []

    def step(carried: list[Tensor], _fixed: list[Tensor], outer: dict[str, Value]) -> list[relax.Expr]:
        _, following, rows = turn(loop.bodies, carried[0], carried[1:], outer)
        collected.extend(rows)
        parts = [op.emit(relax.op.expand_dims(row.expr, 0)) for row in rows]
        return [_next(op, carried[0]), *loop.checked(following), *parts]

    levels = [loop.write("loop_step", step)]
    size_bytes = sum(trips * math.prod(row.shape) * numpy_type(carrier(row.dtype)).itemsize for row in collected)
    if size_bytes > MAX_TENSOR_BYTES:
        op.refuse(f"it would collect {size_bytes:,} bytes")
    while _FAN ** len(levels) <= trips:
        below = levels[-1]
        levels.append(loop.write("loop_level", lambda *given, below=below: loop.chain([below] * _FAN, *given[:2])))
    digits = [(trips // _FAN**level) % _FAN for level in range(len(levels))]
    calls = [function for function, times in zip(levels, digits, strict=True) for _ in range(times)]
    made = loop.chain(calls[::-1], loop.carried, loop.fixed)
    last = [Tensor(expr, state.dtype, inputs=loop.inputs) for expr, state in zip(made[1:], states, strict=False)]
    rows = [
        Tensor(expr, row.dtype, inputs=loop.inputs)
        for expr, row in zip(made[1 + len(states) :], collected, strict=True)
    ]
    return list(last), rows


def run_while(
    op: Operator, bodies: Bodies, trips: Tensor | None, condition: Tensor | None, states: list[Tensor], turn: Turn
) -> list[Value]:
    """The last states of a loop that goes on while its condition holds, `trips` times at most."""
    start = relax.const(True, "bool") if condition is None else _scalar(op, condition)
    most = None
    if trips is not None:
        most = Tensor(_scalar(op, trips), trips.dtype, inputs=trips.inputs) if trips.array is None else trips
        start = op.emit(relax.op.logical_and(start, relax.op.less(relax.const(0, "int64"), _scalar(op, most))))
    for guard, holds in bodies.around.guards:
        flag = _scalar(op, guard)
        start = op.emit(relax.op.logical_and(start, flag if holds else relax.op.logical_not(flag)))
    decided = condition.inputs if condition is not None else frozenset()
    begin = [Tensor.known(np.array(0, np.int64)), Tensor(op.emit(start), "bool", inputs=decided), *states]
    loop = LoopFunctions.of(op, bodies.inside_loop(1), begin, {} if most is None else {"": most})

    def step(carried: list[Tensor], _fixed: list[Tensor], outer: dict[str, Value]) -> list[relax.Expr]:
        limit = outer.pop("", None)
        goes_on, following, _ = turn(loop.bodies, carried[0], carried[2:], outer)
        index = _next(op, carried[0])
        flag = relax.const(True, "bool") if goes_on is None else _scalar(op, goes_on)
        if isinstance(limit, Tensor):
            flag = op.emit(relax.op.logical_and(flag, relax.op.less(index, _scalar(op, limit))))
        return [index, flag, *loop.checked(following)]

    function = loop.write("loop_step", step)
    known = trips.array if trips is not None else None
    longest = _FAN**_MOST_LEVELS if known is None else int(known.reshape(-1)[0])
    level = 0
    while _FAN**level < longest:
        function = loop.write_level(function, _FAN)
        level += 1
    made = loop.chain([loop.write_entry(function)], loop.carried, loop.fixed)
    return [Tensor(expr, state.dtype, inputs=loop.inputs) for expr, state in zip(made[2:], states, strict=True)]


def _next(op: Operator, index: Tensor) -> relax.Expr:
    return op.emit(relax.op.add(index.expr, relax.const(1, "int64")))


def _scalar(op: Operator, tensor: Tensor) -> relax.Expr:
    if tensor.array is not None:
        return Tensor.known(tensor.array.reshape(())).expr
    return op.emit(relax.op.reshape(tensor.expr, ())) if tensor.shape else tensor.expr
