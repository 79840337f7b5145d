"""Whose fault a wrong graph is: its smallest wrong part, and what onnx's reference implementation gives for that."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx.reference

from tests.random_graphs.conditioning import differs
from tests.random_graphs.draw import Drawn
from tests.random_graphs.judge import AGREES, REFERENCE, Verdict
from tests.random_graphs.shrink import shrink, without
from tests.random_graphs.worker import Worker

_WITH_US = "onnx's reference agrees with tvmbridge"


@dataclasses.dataclass(frozen=True)
class Fault:
    """small: the smallest wrong part of a graph. why: it is wrong. opinion: whom onnx's reference agrees with.

    verdict: what the whole graph counts as: it agrees with the reference where that part does.
    """

    small: Drawn
    why: str
    opinion: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{onnx.printer.to_text(self.small.model)}\n{self.why}\n{self.opinion}\n"


def find_fault(worker: Worker, drawn: Drawn, verdict: Verdict) -> Fault:
    """Shrink a graph that was judged to be wrong, and ask the reference of what is left.

    Where the reference agrees with what that part gives, all that is beside it must be right as well.
    """
    small = shrink(drawn, lambda each: worker.judge(each).way == verdict.way)
    why, opinion = worker.judge(small).why, _second_opinion(worker, small)
    if opinion != _WITH_US:
        return Fault(small, why, opinion, verdict)
    rest = without(drawn, small)
    others = worker.judge(rest) if rest is not None else None
    if rest is not None and others is not None and others.is_wrong:
        return find_fault(worker, rest, others)
    return Fault(small, why, opinion, Verdict(REFERENCE, verdict.why))


def _second_opinion(worker: Worker, drawn: Drawn) -> str:
    try:
        values = onnx.reference.ReferenceEvaluator(drawn.model).run(None, drawn.feeds)
        third = dict(zip(drawn.expected, map(np.asarray, values), strict=True))
    except Exception as exc:  # Python code of 200 operators: whatever it raises
        return f"onnx's reference fails: {type(exc).__name__}"
    if all(differs(expected, third[name]) is None for name, expected in drawn.expected.items()):
        return "onnx's reference agrees with ONNX Runtime"
    if worker.judge(dataclasses.replace(drawn, expected=third)).kind == AGREES:
        return _WITH_US
    return "onnx's reference agrees with neither"
