"""Forms of operators that TVM's converters take without a word and compute wrongly: one table, one row a case.

A row leaves the table when a converter of ours computes the case rightly.
"""

from __future__ import annotations

from collections.abc import Callable

from tvmbridge.frontend.operator import Operator

_Rule = Callable[[Operator], bool]


def why_miscomputed(op: Operator) -> str | None:
    """What TVM would get wrong of this node; None where it is right."""
    if op.domain:
        return None
    return next((why for op_type, why, rule in _TABLE if op_type == op.op_type and rule(op)), None)


def _trains_batch_norm(op: Operator) -> bool:
    return op.attribute("training_mode", 0) != 0 or any(op.used[1:])


def _trains_dropout(op: Operator) -> bool:
    training = op.constant(2)
    return _is_computed(op, 2) or (training is not None and bool(training.any()))


def _uses_more_outputs(op: Operator) -> bool:
    return any(op.used[1:])


def _reduces_nothing(op: Operator) -> bool:
    return 0 in op.shape(0)


def _is_computed(op: Operator, position: int) -> bool:
    """Whether the operand there is one that only the run decides."""
    return op.has(position) and op.constant(position) is None


_REDUCTIONS = ("Max", "Min", "Sum", "Mean", "Prod", "LogSumExp", "LogSum", "SumSquare", "L1", "L2")
_TABLE: tuple[tuple[str, str, _Rule], ...] = (
    ("BatchNormalization", "training mode", _trains_batch_norm),
    ("LayerNormalization", "its mean or deviation is used", _uses_more_outputs),
    *((f"Reduce{kind}", "reduces an empty tensor", _reduces_nothing) for kind in _REDUCTIONS),
)
