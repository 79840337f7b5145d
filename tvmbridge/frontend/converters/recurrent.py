"""LSTM, GRU and RNN: one matrix product of all inputs, then one kernel that goes through the steps.

ONNX's layouts become the kernel's here: (steps, sequences, ...) for the inputs, (directions, depth, gates, units) for
the weights, float32 for narrower types.
"""

from __future__ import annotations

import functools

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator
from tvmbridge.frontend.recurrence import GATES, Activation, Cell, recurrence
from tvmbridge.frontend.recurrent_activations import find_activations

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_X, _W, _R, _B, _LENGTHS, _H, _C, _PEEPHOLES = range(8)


def _recurrent(op: Operator) -> list[relax.Expr | None]:
    batch_first = op.attribute("layout", 0) == 1
    cell = _cell(op)
    directions, units = len(cell.reverse), op.shape(_R)[-1]
    _require_shapes(op, directions, units)
    x = _wide(op, _X)
    if batch_first:
        x = op.emit(relax.op.permute_dims(x, (1, 0, 2)))
    weights = [_recurrent_weight(op, gates) for gates in cell.products]
    states = [_state(op, position, batch_first) for position in (_H, _C)[: 2 if op.op_type == "LSTM" else 1]]
    bias, reset_bias = _biases(op, cell)
    peepholes = _wide(op, _PEEPHOLES) if op.op_type == "LSTM" and op.has(_PEEPHOLES) else None
    if peepholes is not None:
        peepholes = op.emit(relax.op.reshape(peepholes, (directions, 3, units)))
    lengths = op.input(_LENGTHS) if op.has(_LENGTHS) else None
    projected = _project(op, x, bias, directions, units)
    extras = [peepholes, reset_bias, lengths]
    kernel = functools.partial(recurrence, cell)
    made = op.compute(kernel, projected, weights, states, extras, name=op.op_type.lower())
    results: list[relax.Expr] = [op.emit(relax.TupleGetItem(made, index)) for index in range(1 + len(states))]
    if batch_first:
        orders = [(2, 0, 1, 3), *[(1, 0, 2)] * len(states)]
        results = [op.emit(relax.op.permute_dims(r, order)) for r, order in zip(results, orders, strict=True)]
    if op.dtype(_X) == "float16":
        results = [op.emit(relax.op.astype(result, "float16")) for result in results]
    return [result if used else None for result, used in zip(results, op.used, strict=False)]


def _cell(op: Operator) -> Cell:
    direction = op.attribute("direction", "forward")
    if direction not in _REVERSE:
        op.refuse(f"the direction {direction!r} is not one of ONNX")
    reverse, defaults = _REVERSE[direction], _DEFAULTS[op.op_type]
    names = tuple(op.attribute("activations") or defaults * len(reverse))
    if op.op_type == "RNN":
        names = names[: len(reverse)]  # the schema's default names two, also for one direction
    if len(names) != len(defaults) * len(reverse):
        op.refuse(f"it names {len(names)} activations, not {len(defaults)} for each of its directions")
    alphas, betas = (tuple(op.attribute(f"activation_{name}") or ()) for name in ("alpha", "beta"))
    # What an LSTM's output is made of, its state, ONNX Runtime does not clip; the specification can be read so.
    clips = [None if index % len(defaults) == 2 else op.attribute("clip") for index in range(len(names))]
    try:
        found: list[Activation] = find_activations(names, alphas, betas, tuple(clips))
    except ValueError as exc:
        op.refuse(str(exc))
    count = len(defaults)
    return Cell(
        op.op_type,
        tuple(tuple(found[start : start + count]) for start in range(0, len(found), count)),
        reverse,
        reset_after=op.op_type == "GRU" and op.attribute("linear_before_reset", 0) != 0,
        couple=op.op_type == "LSTM" and op.attribute("input_forget", 0) != 0,
    )


def _require_shapes(op: Operator, directions: int, units: int) -> None:
    rows = GATES[op.op_type] * units
    if op.attribute("hidden_size", units) != units:
        op.refuse(f"its hidden_size is {op.attribute('hidden_size')}, and its weights are for {units}")
    if op.shape(_W) != (directions, rows, op.shape(_X)[-1]) or op.shape(_R) != (directions, rows, units):
        op.refuse(f"its weights {op.shape(_W)} and {op.shape(_R)} do not fit {directions} directions of {units} units")


def _dtype(op: Operator) -> str:
    """What the steps are computed in: sums of float16 would lose digits at each step."""
    return "float64" if op.dtype(_X) == "float64" else "float32"


def _wide(op: Operator, position: int) -> relax.Expr:
    """An operand in the type that the steps are computed in."""
    expr = op.input(position)
    return expr if op.dtype(position) == _dtype(op) else op.emit(relax.op.astype(expr, _dtype(op)))


def _recurrent_weight(op: Operator, gates: tuple[int, ...]) -> relax.Expr:
    """(directions, depth, these gates, units) of R."""
    directions, rows, units = op.shape(_R)
    weight = _part(op, _R, (directions, rows // units, units, units), gates[0], gates[-1] + 1)
    return op.emit(relax.op.permute_dims(weight, (0, 3, 1, 2)))


def _part(op: Operator, position: int, shape: tuple[int, ...], first: int, last: int) -> relax.Expr:
    """An operand in this shape, some elements of its second axis; cut at once where its value is known."""
    known = op.constant(position)
    if known is not None:
        return relax.const(np.ascontiguousarray(known.reshape(shape)[:, first:last], _dtype(op)), _dtype(op))
    whole = op.emit(relax.op.reshape(_wide(op, position), shape))
    return op.emit(relax.op.strided_slice(whole, [1], [first], [last])) if last - first < shape[1] else whole


def _state(op: Operator, position: int, batch_first: bool) -> relax.Expr:
    """(directions, sequences, units) at the start."""
    directions, units = op.shape(_R)[0], op.shape(_R)[-1]
    if op.has(position):
        state = _wide(op, position)
        return op.emit(relax.op.permute_dims(state, (1, 0, 2))) if batch_first else state
    sequences = op.shape(_X)[0 if batch_first else 1]
    return relax.const(np.zeros((directions, sequences, units), _dtype(op)), _dtype(op))


def _biases(op: Operator, cell: Cell) -> tuple[relax.Expr | None, relax.Expr | None]:
    """What is added to the product of the inputs, a row; and what a GRU resets, (directions, units)."""
    if not op.has(_B):
        return None, None
    (directions, rows), gates = op.shape(_B), GATES[op.op_type]
    units = rows // (2 * gates)
    shape = (directions, 2 * gates, units)

    def part(first: int, last: int) -> relax.Expr:
        return _part(op, _B, shape, first, last)

    reset_bias = None
    if cell.reset_after:
        reset_bias = op.emit(relax.op.reshape(part(5, 6), (directions, units)))
        total = op.emit(relax.op.add(part(0, 2), part(3, 5)))
        total = op.emit(relax.op.concat([total, part(2, 3)], 1))
    else:
        total = op.emit(relax.op.add(part(0, gates), part(gates, 2 * gates)))
    return op.emit(relax.op.reshape(total, (directions * gates * units,))), reset_bias


def _project(op: Operator, x: relax.Expr, bias: relax.Expr | None, directions: int, units: int) -> relax.Expr:
    """(steps, sequences, directions, gates, units): the inputs of all steps times their weights, and the bias."""
    steps, sequences, features = (int(axis) for axis in x.ty.shape.values)
    gates = GATES[op.op_type]
    weight = op.emit(relax.op.reshape(_wide(op, _W), (directions * gates * units, features)))
    rows = op.emit(relax.op.reshape(x, (steps * sequences, features)))
    product = op.emit(relax.op.matmul(rows, op.emit(relax.op.permute_dims(weight, (1, 0)))))
    if bias is not None:
        product = op.emit(relax.op.add(product, bias))
    return op.emit(relax.op.reshape(product, (steps, sequences, directions, gates, units)))


CONVERTERS: dict[str, Converter] = dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent)
