"""The comparison sees every kind of wrong result, and an exception is the outcome of the stage that raised it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from tests.conformance import engines
from tests.conformance.cases import scored_cases
from tests.conformance.engines import COMPILE_ERROR, PASS, REFUSED, RUN_ERROR, WRONG, run_on
from tvmbridge.errors import CompileError, InputError, UnsupportedOperatorError

pytestmark = pytest.mark.slow  # to read the suite takes five seconds


class Reference:
    """ONNX's own evaluator as an engine, with something done to its outputs."""

    def __init__(self, change):
        self.change = change

    def prepare(self, model, device="CPU"):
        self.evaluator = ReferenceEvaluator(model)
        return self

    def run(self, inputs):
        names = self.evaluator.input_names
        return self.change(self.evaluator.run(None, dict(zip(names, inputs, strict=True))))

    def describe(self):
        return {}


def run(monkeypatch, case, change):
    monkeypatch.setitem(engines.ENGINES, "reference", lambda: Reference(change))
    return run_on("reference", scored_cases()[case])


@pytest.mark.parametrize(
    "case",
    ["test_relu", "test_cast_FLOAT_to_UINT4", "test_sequence_insert_at_back", "test_split_1d_uneven_split_opset18"],
)
def test_right_outputs_pass(monkeypatch, case):
    assert run(monkeypatch, case, list).outcome == PASS


@pytest.mark.parametrize(
    ("case", "change", "reason"),
    [
        ("test_relu", lambda outputs: [outputs[0] + np.float32(0.01)], "values"),
        ("test_relu", lambda outputs: [outputs[0].astype(np.float64)], "dtype"),
        ("test_relu", lambda outputs: [outputs[0][None]], "shape"),
        ("test_relu", lambda outputs: [np.full_like(outputs[0], np.nan)], "NaN in other places"),
        ("test_relu", lambda outputs: [], "0 elements given, 1 expected"),
        ("test_sequence_insert_at_back", lambda outputs: [outputs[0][:-1]], "elements given"),
        ("test_sequence_insert_at_back", lambda outputs: [outputs[0][0]], "a sequence expected"),
    ],
)
def test_outputs_that_differ_are_wrong(monkeypatch, case, change, reason):
    result = run(monkeypatch, case, change)
    assert result.outcome == WRONG
    assert reason in result.reason


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (UnsupportedOperatorError("test_relu: no Relu", operators=("Relu",)), REFUSED, "no Relu"),
        (CompileError("no code"), COMPILE_ERROR, "no code"),
        (InputError("no index"), RUN_ERROR, "no index"),
        (ValueError("at 0x7f00 [12:34:56]\nmore"), RUN_ERROR, "ValueError: at ADDRESS"),
    ],
)
def test_an_exception_is_the_outcome_of_its_kind_without_what_varies(monkeypatch, error, outcome, reason):
    def fail(_outputs):
        raise error

    result = run(monkeypatch, "test_relu", fail)
    assert (result.outcome, result.reason.strip()) == (outcome, reason)
