"""If, Loop and Scan: a branch whose condition is known is taken, a loop whose trip count is known is unrolled.

Where only the run knows the condition of an If, both branches are computed and one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
from tvm import relax

from tvmbridge.errors import ModelError
from tvmbridge.frontend.operator import Missing, Operator, Tensor, TensorSequence, Value, known_arrays

_MOST_NODES = 20_000  # that a loop may unroll into
MOST_KNOWN_BYTES = 1 << 24  # beyond it, known tensors are put together by the run


class Walk(Protocol):
    """Traces a body: its results, in order."""

    def __call__(self, body: onnx.GraphProto, given: Mapping[str, Value]) -> list[Value]:
        """Trace `body` with `given` for its inputs, by name."""


def resolve(op: Operator, walk: Walk) -> tuple[Value, ...] | None:
    """The results of If, Loop or Scan; None where it is another operator."""
    rule = {"If": _branch, "Loop": _loop, "Scan": _scan}.get(op.op_type) if not op.domain else None
    return None if rule is None else tuple(rule(op, walk))


def _branch(op: Operator, walk: Walk) -> list[Value]:
    known = op.constant(0)
    if known is not None:
        chosen = "then_branch" if bool(known.reshape(-1)[0]) else "else_branch"
        return walk(op.attribute(chosen), {})
    first, second = (walk(op.attribute(name), {}) for name in ("then_branch", "else_branch"))
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


def _loop(op: Operator, walk: Walk) -> list[Value]:
    """Unrolled while the condition stays known; each iteration's outputs are stacked."""
    body: onnx.GraphProto = op.attribute("body")
    most = op.known(0, "its trip count")
    trips = None if most is None else int(most.reshape(-1)[0])
    go_on = op.known(1, "its condition")
    running = True if go_on is None else bool(go_on.reshape(-1)[0])
    carried = _given(op, op.operands[2:])
    stacked: list[list[Tensor]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    iteration = 0
    if running and _goes_on(body) and (trips is None or trips * max(1, len(body.node)) > _MOST_NODES):
        op.refuse(f"it would unroll into more than {_MOST_NODES} nodes")
    while running and (trips is None or iteration < trips):
        if (iteration + 1) * max(1, len(body.node)) > _MOST_NODES:
            op.refuse(f"it would unroll into more than {_MOST_NODES} nodes")
        names = [entry.name for entry in body.input]
        values = [Tensor.known(np.array(iteration, np.int64)), Tensor.known(np.array(True)), *carried]
        condition, *made = walk(body, dict(zip(names, values, strict=False)))
        carried = made[: len(carried)]
        for results, value in zip(stacked, made[len(carried) :], strict=True):
            results.append(_tensor(op, value))
        iteration += 1
        running = iteration != trips and _known_condition(op, condition)
    return [*carried, *(_stack(op, results, position) for position, results in enumerate(stacked, len(carried)))]


def _goes_on(body: onnx.GraphProto) -> bool:
    """Whether the body hands its condition on as it is."""
    made = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    return name == body.input[1].name


def _known_condition(op: Operator, condition: Value) -> bool:
    if not isinstance(condition, Tensor) or condition.array is None:
        op.refuse("whether it goes on is computed at run time")
    return bool(condition.array.reshape(-1)[0])


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


def _scan(op: Operator, walk: Walk) -> list[Value]:
    """Unrolled over the scanned axis. Of op-set 8, whose tensors have a batch in front, a loop for each sample."""
    if op.version < 9:
        return _batched_scan(op, walk)
    body: onnx.GraphProto = op.attribute("body")
    scanned = op.attribute("num_scan_inputs")
    states = len(op.operands) - scanned
    outputs = len(body.output) - states
    axes = [axis % len(op.shape(states + k)) for k, axis in enumerate(op.attribute("scan_input_axes") or [0] * scanned)]
    backward = op.attribute("scan_input_directions") or [0] * scanned
    tensors = [op.tensor(states + k) for k in range(scanned)]
    made = _scan_one(op, walk, body, _given(op, op.operands[:states]), tensors, axes, backward)
    results = made[0]
    out_axes = op.attribute("scan_output_axes") or [0] * outputs
    out_backward = op.attribute("scan_output_directions") or [0] * outputs
    for k, parts in enumerate(made[1]):
        rank = len(parts[0].shape) + 1 if parts else 1
        ordered = parts[::-1] if out_backward[k] else parts
        results.append(_stack(op, ordered, states + k, out_axes[k] % rank))
    return results


def _scan_one(
    op: Operator,
    walk: Walk,
    body: onnx.GraphProto,
    states: list[Value],
    tensors: list[Tensor],
    axes: list[int],
    backward: list[int],
) -> tuple[list[Value], list[list[Tensor]]]:
    trips = {tensor.shape[axis] for tensor, axis in zip(tensors, axes, strict=True)}
    if len(trips) != 1:
        raise ModelError(f"Scan {op.name!r}: its inputs are of different lengths: {sorted(trips)}")
    (count,) = trips
    if count * max(1, len(body.node)) > _MOST_NODES:
        op.refuse(f"it would unroll into more than {_MOST_NODES} nodes")
    names = [entry.name for entry in body.input]
    collected: list[list[Tensor]] = [[] for _ in range(len(body.output) - len(states))]
    for step in range(count):
        parts = [
            _slice(op, tensor, axis, count - 1 - step if back else step)
            for tensor, axis, back in zip(tensors, axes, backward, strict=True)
        ]
        made = walk(body, dict(zip(names, [*states, *parts], strict=True)))
        states = made[: len(states)]
        for results, value in zip(collected, made[len(states) :], strict=True):
            results.append(_tensor(op, value))
    return states, collected


def _batched_scan(op: Operator, walk: Walk) -> list[Value]:
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
        last, collected = _scan_one(op, walk, body, list(parts[:states]), parts[states:], [0] * scanned, backward)
        rows = [_stack(op, results, states + k) for k, results in enumerate(collected)]
        samples.append([*(_tensor(op, state) for state in last), *rows])
    return [_stack(op, list(parts), position) for position, parts in enumerate(zip(*samples, strict=True))]
