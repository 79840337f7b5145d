"""If, Loop and Scan: a branch whose condition is known is taken, a short loop of a known trip count is unrolled.

Where only the run knows the condition of an If, both branches are computed and one is chosen. Other loops stay loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from tvm import relax

from tvmbridge.errors import ModelError, UnsupportedOperatorError
from tvmbridge.frontend.operator import Missing, Operator, Tensor, TensorSequence, Value, known_arrays
from tvmbridge.frontend.trace import real_loop
from tvmbridge.frontend.trace.bodies import Bodies

_MOST_NODES = 20_000  # that a loop may unroll into
MOST_KNOWN_BYTES = 1 << 24  # beyond it, known tensors are put together by the run


def resolve(op: Operator, bodies: Bodies) -> tuple[Value, ...] | None:
    """The results of If, Loop or Scan; None where it is another operator."""
    rule = {"If": _branch, "Loop": _loop, "Scan": _scan}.get(op.op_type) if not op.domain else None
    return None if rule is None else tuple(rule(op, bodies))


def _branch(op: Operator, bodies: Bodies) -> list[Value]:
    known = op.constant(0)
    if known is not None:
        chosen = "then_branch" if bool(known.reshape(-1)[0]) else "else_branch"
        return bodies(op.attribute(chosen), {})
    first = bodies.guarded(op.tensor(0), True)(op.attribute("then_branch"), {})
    second = bodies.guarded(op.tensor(0), False)(op.attribute("else_branch"), {})
    condition = op.input(0)
    if op.shape(0):
        condition = op.emit(relax.op.reshape(condition, ()))
    return [_choose(op, condition, left, right) for left, right in zip(first, second, strict=True)]


def _choose(op: Operator, condition: relax.Expr, left: Value, right: Value) -> Value:
    """One of two values at run time; where they are unlike, the condition would have to be known."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape == right.shape and left.dtype == right.dtype:
            chosen = op.emit(relax.op.where(condition, left.expr, right.expr))
            return Tensor(chosen, left.dtype, inputs=left.inputs | right.inputs | op.tensor(0).inputs)
    elif isinstance(left, TensorSequence) and isinstance(right, TensorSequence):
        if len(left.items) == len(right.items):
            pairs = zip(left.items, right.items, strict=True)
            chosen_items = tuple(_tensor(op, _choose(op, condition, *pair)) for pair in pairs)
            return TensorSequence(chosen_items, left.dtype)
    elif isinstance(left, Missing) and isinstance(right, Missing):
        return left
    op.refuse_unbound(0, "its condition, of which types or shapes depend,")


def _loop(op: Operator, bodies: Bodies) -> list[Value]:
    """Unrolled while the condition stays known, each iteration's outputs stacked; else a loop in the program, too."""
    body: onnx.GraphProto = op.attribute("body")
    most, go_on = op.constant(0), op.constant(1)
    carried = _given(op, op.operands[2:])
    trips = None if most is None else int(most.reshape(-1)[0])
    if (op.has(0) and most is None) or (op.has(1) and go_on is None):
        return _stays(op, bodies, carried, None)
    if go_on is not None and not bool(go_on.reshape(-1)[0]):
        trips = 0
    if _goes_on(body):
        if trips is None:
            op.refuse("nothing ends it")
        if trips * max(1, len(body.node)) > _MOST_NODES:
            return _stays(op, bodies, carried, trips)
    return _unrolled(op, bodies, carried, trips) or _stays(op, bodies, carried, None)


def _unrolled(op: Operator, bodies: Bodies, carried: list[Value], trips: int | None) -> list[Value] | None:
    """None where it is too long, or where the run computes whether it goes on."""
    body: onnx.GraphProto = op.attribute("body")
    stacked: list[list[Tensor]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    iteration, running = 0, True
    while running and (trips is None or iteration < trips):
        if (iteration + 1) * max(1, len(body.node)) > _MOST_NODES:
            return None
        names = [entry.name for entry in body.input]
        values = [Tensor.known(np.array(iteration, np.int64)), Tensor.known(np.array(True)), *carried]
        condition, *made = bodies(body, dict(zip(names, values, strict=False)))
        carried = made[: len(carried)]
        for results, value in zip(stacked, made[len(carried) :], strict=True):
            results.append(_tensor(op, value))
        iteration += 1
        if iteration != trips:
            if not isinstance(condition, Tensor) or condition.array is None:
                return None
            running = bool(condition.array.reshape(-1)[0])
    return [*carried, *(_stack(op, results, position) for position, results in enumerate(stacked, len(carried)))]


def _stays(op: Operator, bodies: Bodies, carried: list[Value], trips: int | None) -> list[Value]:
    """A Loop that stays one. trips: how often it runs; None where only the run knows.

    One that cannot stay, as its states change their shape or are sequences, asks for what would let it be unrolled.
    """
    try:
        return _kept(op, bodies, carried, trips)
    except UnsupportedOperatorError as exc:
        op.known(0, f"its trip count, to unroll what cannot stay a loop ({exc.message}),")
        op.known(1, f"its condition, to unroll what cannot stay a loop ({exc.message}),")
        raise


def _kept(op: Operator, bodies: Bodies, carried: list[Value], trips: int | None) -> list[Value]:
    body: onnx.GraphProto = op.attribute("body")
    names = [entry.name for entry in body.input]
    states = [_tensor(op, value) for value in carried]

    def turn(inner: Bodies, index: Tensor, now: list[Tensor], outer: dict[str, Value]) -> real_loop.Turned:
        given = dict(zip(names, [index, Tensor.known(np.array(True)), *now], strict=False))
        condition, *made = inner(body, _seen(body, outer) | given)
        rows = [_tensor(op, value) for value in made[len(now) :]]
        return _tensor(op, condition), made[: len(now)], rows

    if trips is not None:
        last, rows = real_loop.count(op, bodies, trips, states, turn)
        return [*last, *rows]
    if len(body.output) > 1 + len(states):
        op.refuse("it collects as many results as the run decides")
    limit, condition = (op.tensor(position) if op.has(position) else None for position in (0, 1))
    return real_loop.run_while(op, bodies, limit, condition, states, turn)


def _seen(body: onnx.GraphProto, outer: Mapping[str, Value]) -> dict[str, Value]:
    """What a body sees of the values around it: not those whose names are its own."""
    own = {entry.name for entry in (*body.input, *body.initializer)}
    return {name: value for name, value in outer.items() if name not in own}


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether the body hands its condition on as it is."""
    made = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    return name == body.input[1].name


def _given(op: Operator, values: Sequence[Value | None]) -> list[Value]:
    """States before the first iteration, none of which may be absent."""
    given = [value for value in values if value is not None]
    if len(given) != len(values):
        raise ModelError(f"{op.op_type} {op.name!r}: one of its states has no value before the first iteration")
    return given


def _tensor(op: Operator, value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        op.refuse("it collects sequences")
    return value


def _stack(op: Operator, parts: list[Tensor], position: int, axis: int = 0) -> Tensor:
    if not parts:
        return Tensor.known(np.empty((0, *op.result_shape(position)[1:]), op.result_type(position)))
    if any(part.shape != parts[0].shape for part in parts):
        op.refuse("what its iterations give differs in shape")
    arrays = known_arrays(parts)
    if arrays is not None and sum(array.nbytes for array in arrays) <= MOST_KNOWN_BYTES:
        return Tensor.known(np.stack(arrays, axis))
    rows = [op.emit(relax.op.expand_dims(part.expr, axis)) for part in parts]
    joined = rows[0] if len(rows) == 1 else op.emit(relax.op.concat(rows, axis))
    return Tensor(joined, parts[0].dtype, inputs=frozenset().union(*(part.inputs for part in parts)))


def _slice(op: Operator, tensor: Tensor, axis: int, index: int) -> Tensor:
    if tensor.array is not None:
        return Tensor.known(tensor.array.take(index, axis))
    part = op.emit(relax.op.strided_slice(tensor.expr, [axis], [index], [index + 1]))
    return Tensor(op.emit(relax.op.squeeze(part, [axis])), tensor.dtype, inputs=tensor.inputs)


def _scan(op: Operator, bodies: Bodies) -> list[Value]:
    """Unrolled over the scanned axis. Of op-set 8, whose tensors have a batch in front, a loop for each sample."""
    if op.version < 9:
        return _batched_scan(op, bodies)
    body: onnx.GraphProto = op.attribute("body")
    scanned = op.attribute("num_scan_inputs")
    states = len(op.operands) - scanned
    outputs = len(body.output) - states
    axes = [axis % len(op.shape(states + k)) for k, axis in enumerate(op.attribute("scan_input_axes") or [0] * scanned)]
    backward = op.attribute("scan_input_directions") or [0] * scanned
    tensors = [op.tensor(states + k) for k in range(scanned)]
    given = _given(op, op.operands[:states])
    if tensors[0].shape[axes[0]] * max(1, len(body.node)) > _MOST_NODES:
        return _scan_stays(op, bodies, given, tensors, axes, backward)
    made = _scan_one(op, bodies, body, given, tensors, axes, backward)
    results = made[0]
    out_axes = op.attribute("scan_output_axes") or [0] * outputs
    out_backward = op.attribute("scan_output_directions") or [0] * outputs
    for k, parts in enumerate(made[1]):
        rank = len(parts[0].shape) + 1 if parts else 1
        ordered = parts[::-1] if out_backward[k] else parts
        results.append(_stack(op, ordered, states + k, out_axes[k] % rank))
    return results


def _scan_stays(
    op: Operator, bodies: Bodies, given: list[Value], tensors: list[Tensor], axes: list[int], backward: Sequence[int]
) -> list[Value]:
    """A Scan that stays a loop: each iteration takes its slices by its index."""
    body: onnx.GraphProto = op.attribute("body")
    count = _length(op, tensors, axes)
    names = [entry.name for entry in body.input]
    scanned = [f"{position}\n" for position in range(len(tensors))]  # no name of a tensor has a line break

    def turn(inner: Bodies, index: Tensor, now: list[Tensor], outer: dict[str, Value]) -> real_loop.Turned:
        from_end = op.emit(relax.op.subtract(relax.const(count - 1, "int64"), index.expr))
        parts = []
        for name, axis, back in zip(scanned, axes, backward, strict=True):
            tensor = _tensor(op, outer[name])
            part = op.emit(relax.op.take(tensor.expr, from_end if back else index.expr, axis, mode="clip"))
            parts.append(Tensor(part, tensor.dtype, inputs=tensor.inputs))
        made = inner(body, _seen(body, outer) | dict(zip(names, [*now, *parts], strict=True)))
        return None, made[: len(now)], [_tensor(op, value) for value in made[len(now) :]]

    states = [_tensor(op, value) for value in given]
    last, rows = real_loop.count(op, bodies.with_outer(dict(zip(scanned, tensors, strict=True))), count, states, turn)
    out_axes = op.attribute("scan_output_axes") or [0] * len(rows)
    out_backward = op.attribute("scan_output_directions") or [0] * len(rows)
    return [*last, *(_laid(op, row, axis, back) for row, axis, back in zip(rows, out_axes, out_backward, strict=True))]


def _laid(op: Operator, rows: Tensor, axis: int, backward: int) -> Tensor:
    """Stacked results with their first axis where it belongs, and in its order."""
    expr, rank = rows.expr, len(rows.shape)
    if backward:
        expr = op.emit(relax.op.flip(expr, 0))
    if axis % rank:
        order = [*range(1, axis % rank + 1), 0, *range(axis % rank + 1, rank)]
        expr = op.emit(relax.op.permute_dims(expr, order))
    return Tensor(expr, rows.dtype, inputs=rows.inputs)


def _length(op: Operator, tensors: Sequence[Tensor], axes: Sequence[int]) -> int:
    trips = {tensor.shape[axis] for tensor, axis in zip(tensors, axes, strict=True)}
    if len(trips) != 1:
        raise ModelError(f"Scan {op.name!r}: its inputs are of different lengths: {sorted(trips)}")
    return trips.pop()


def _scan_one(
    op: Operator,
    bodies: Bodies,
    body: onnx.GraphProto,
    states: list[Value],
    tensors: list[Tensor],
    axes: list[int],
    backward: list[int],
) -> tuple[list[Value], list[list[Tensor]]]:
    count = _length(op, tensors, axes)
    if count * max(1, len(body.node)) > _MOST_NODES:
        op.refuse(f"it would unroll into more than {_MOST_NODES} nodes")
    names = [entry.name for entry in body.input]
    collected: list[list[Tensor]] = [[] for _ in range(len(body.output) - len(states))]
    for step in range(count):
        parts = [
            _slice(op, tensor, axis, count - 1 - step if back else step)
            for tensor, axis, back in zip(tensors, axes, backward, strict=True)
        ]
        made = bodies(body, dict(zip(names, [*states, *parts], strict=True)))
        states = made[: len(states)]
        for results, value in zip(collected, made[len(states) :], strict=True):
            results.append(_tensor(op, value))
    return states, collected


def _batched_scan(op: Operator, bodies: Bodies) -> list[Value]:
    if op.has(0):
        op.refuse("sequence lengths of op-set 8")
    body: onnx.GraphProto = op.attribute("body")
    scanned = op.attribute("num_scan_inputs")
    operands = [op.tensor(position) for position in range(1, len(op.operands))]
    states = len(operands) - scanned
    backward = list(op.attribute("directions") or [0] * scanned)
    samples = []
    for sample in range(operands[0].shape[0]):
        parts = [_slice(op, operand, 0, sample) for operand in operands]
        last, collected = _scan_one(op, bodies, body, list(parts[:states]), parts[states:], [0] * scanned, backward)
        rows = [_stack(op, results, states + k) for k, results in enumerate(collected)]
        samples.append([*(_tensor(op, state) for state in last), *rows])
    return [_stack(op, list(parts), position) for position, parts in enumerate(zip(*samples, strict=True))]
