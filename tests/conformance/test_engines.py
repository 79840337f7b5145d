"""The comparison sees every kind of wrong result, and an exception is the outcome of the stage that raised it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.parser import parse_model
from onnx.reference import ReferenceEvaluator

from tests.conformance import engines
from tests.conformance.cases import scored_cases
from tests.conformance.engines import COMPILE_ERROR, PASS, REFUSED, RUN_ERROR, WRONG, run_on
from tests.conformance.exact import is_nearer
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
    ("off", "nearer"),
    [(0, True), (5e-7, True), (2e-6, False), (np.nan, False)],
)
def test_a_result_is_nearer_than_the_suites_only_where_it_is_off_by_less(off, nearer):
    model = parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[3] x) => (float[3] y) { y = Sin (x) }')
    x = np.array([0.1, 0.7, -2], np.float32)
    exact = np.sin(x.astype(np.float64))
    expected = (exact + 1e-6).astype(np.float32)
    given = (exact + off).astype(np.float32)
    assert is_nearer(model, [x], [expected], [given]) is nearer
    assert not is_nearer(model, [x], [expected], [given.astype(np.float64)])
    assert not is_nearer(model, [x], [expected], [given[:2]])
    assert not is_nearer(model, [x], [expected], [])


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
