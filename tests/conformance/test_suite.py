"""The ONNX project's backend suite on tvmbridge.backend: each case comes out as the ledger says."""

from __future__ import annotations

import onnx
import pytest

from tests.conformance.cases import scored_cases
from tests.conformance.engines import CRASH, IMPORT_ERROR, OUTCOMES, TIMEOUT, WRONG, Result
from tests.conformance.ledger import LEDGER_PATH, explain, read_ledger, render_ledger
from tests.conformance.operators import OPERATORS_PATH, render_operators
from tests.conformance.pool import Task, run_tasks

LEDGER = read_ledger()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first item waits for all cases


@pytest.fixture(scope="module")
def results(request) -> dict[str, Result]:
    """All cases that pytest has selected, run at once in worker processes."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.originalname == test_case.__name__]
    found: dict[str, Result] = {}
    tasks = [Task("tvmbridge", case) for case in chosen]
    run_tasks(tasks, on_result=lambda task, result: found.update({task.case: result}))
    return found


@pytest.mark.parametrize("case", scored_cases())
def test_case(case, results):
    assert explain(LEDGER, results[case]) is None


def test_the_ledger_is_of_the_suite_that_is_installed():
    assert LEDGER.onnx == onnx.__version__
    assert set(LEDGER.entries) <= set(scored_cases())


def test_the_ledger_holds_no_wrong_result_and_no_crash():
    bad = {WRONG, CRASH, TIMEOUT, IMPORT_ERROR}
    assert {case: entry for case, entry in LEDGER.entries.items() if entry.outcome in bad} == {}
    assert {entry.outcome for entry in LEDGER.entries.values()} <= set(OUTCOMES)


def test_the_ledger_is_as_the_driver_writes_it():
    assert LEDGER_PATH.read_text() == render_ledger(LEDGER)


def test_the_page_of_operators_says_what_the_ledger_says():
    assert OPERATORS_PATH.read_text() == render_operators(LEDGER, scored_cases()), "run it with --update-ledger"
