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


def _uses_more_outputs(op: Operator) -> bool:
    return any(op.used[1:])


_TABLE: tuple[tuple[str, str, _Rule], ...] = (
    ("LayerNormalization", "its mean or deviation is used", _uses_more_outputs),
)
