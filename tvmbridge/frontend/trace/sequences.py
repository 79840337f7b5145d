"""Sequences and optionals, which exist only while the graph is traced: their lengths are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto
from tvm import relax

from tvmbridge.frontend.operator import Missing, Operator, Tensor, TensorSequence, Value, element_type, known_arrays
from tvmbridge.frontend.trace.control_flow import MOST_KNOWN_BYTES


def resolve(op: Operator) -> tuple[Value, ...] | None:
    """The results of an operator on sequences or optionals; None where it is no such operator."""
    rule = _RULES.get(op.op_type) if not op.domain else None
    return None if rule is None else (rule(op),)


def _sequence(op: Operator, position: int = 0) -> TensorSequence:
    value = op.operands[position]
    if not isinstance(value, TensorSequence):
        op.refuse(f"its input {position} is no sequence")
    return value


def _position(op: Operator, position: int, count: int, default: int, *, end: int = 0) -> int:
    """A position among `count` tensors, or `end` places behind the last, counted from the front."""
    known = op.known(position, "its position")
    number = default if known is None else int(known.reshape(-1)[0])
    if not -count <= number < count + end:
        op.refuse(f"position {number} is none of {count + end}")
    return number + count if number < 0 else number


def _construct(op: Operator) -> Value:
    items = tuple(op.tensor(position) for position in range(len(op.operands)))
    return TensorSequence(items, items[0].dtype)


def _make_empty(op: Operator) -> Value:
    return TensorSequence((), element_type(op.attribute("dtype", TensorProto.FLOAT)))


def _at(op: Operator) -> Value:
    items = _sequence(op).items
    return items[_position(op, 1, len(items), 0)]


def _insert(op: Operator) -> Value:
    sequence = _sequence(op)
    items = list(sequence.items)
    items.insert(_position(op, 2, len(items), len(items), end=1), op.tensor(1))
    return TensorSequence(tuple(items), op.tensor(1).dtype)


def _erase(op: Operator) -> Value:
    sequence = _sequence(op)
    items = list(sequence.items)
    del items[_position(op, 1, len(items), len(items) - 1)]
    return TensorSequence(tuple(items), sequence.dtype)


def _length(op: Operator) -> Value:
    return Tensor.known(np.array(len(_sequence(op).items), np.int64))


def _concatenate(op: Operator) -> Value:
    items, axis = _sequence(op).items, op.attribute("axis")
    inputs = frozenset().union(*(item.inputs for item in items))
    arrays = known_arrays(items)
    if arrays is not None and sum(array.nbytes for array in arrays) <= MOST_KNOWN_BYTES:
        joined = np.stack(arrays, axis) if op.attribute("new_axis", 0) else np.concatenate(arrays, axis)
        return Tensor.known(joined)
    exprs = [item.expr for item in items]
    if op.attribute("new_axis", 0):
        axis %= len(items[0].shape) + 1
        exprs = [op.emit(relax.op.expand_dims(expr, axis)) for expr in exprs]
    return Tensor(op.emit(relax.op.concat(exprs, axis)), items[0].dtype, inputs=inputs)


def _split(op: Operator) -> Value:
    tensor, axis = op.tensor(0), op.attribute("axis", 0) % len(op.shape(0))
    extent, given = op.shape(0)[axis], op.known(1, "its parts")
    keep = given is not None or bool(op.attribute("keepdims", 1))
    if given is None or given.ndim == 0:
        size = 1 if given is None else int(given)
        sizes = [min(size, extent - start) for start in range(0, extent, size)]
    else:
        sizes = [int(size) for size in given]
    items, start = [], 0
    for size in sizes:
        if tensor.array is not None:
            part = Tensor.known(tensor.array.take(range(start, start + size), axis))
        else:
            sliced = op.emit(relax.op.strided_slice(tensor.expr, [axis], [start], [start + size]))
            part = Tensor(sliced, tensor.dtype, inputs=tensor.inputs)
        if not keep and part.array is not None:
            part = Tensor.known(part.array.squeeze(axis))
        elif not keep:
            part = Tensor(op.emit(relax.op.squeeze(part.expr, [axis])), part.dtype, inputs=part.inputs)
        items.append(part)
        start += size
    return TensorSequence(tuple(items), tensor.dtype)


def _optional(op: Operator) -> Value:
    return op.operands[0] if op.operands and op.operands[0] is not None else Missing()


def _has_element(op: Operator) -> Value:
    there = bool(op.operands) and op.operands[0] is not None and not isinstance(op.operands[0], Missing)
    return Tensor.known(np.array(there))


def _get_element(op: Operator) -> Value:
    value = op.operands[0]
    if value is None or isinstance(value, Missing):
        op.refuse("the optional has no value")
    return value


_RULES: dict[str, Callable[[Operator], Value]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _make_empty,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "ConcatFromSequence": _concatenate,
    "SplitToSequence": _split,
    "Optional": _optional,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _get_element,
}
