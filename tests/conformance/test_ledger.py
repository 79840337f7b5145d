"""The ledger as a file, and what it says of a result."""

from __future__ import annotations

import pytest

from tests.conformance.engines import PASS, REFUSED, WRONG, Result
from tests.conformance.ledger import Entry, Ledger, explain, parse_ledger, render_ledger, update_ledger

LEDGER = Ledger("1.2.3", {"test_b": Entry(REFUSED, 'why, "quoted"'), "test_a": Entry(REFUSED, "")})


def test_a_ledger_is_read_as_it_was_written_sorted_by_case():
    text = render_ledger(LEDGER)
    assert parse_ledger(text) == LEDGER
    assert text.index("test_a") < text.index("test_b")


@pytest.mark.parametrize("text", ["", "case,outcome,reason\n", "# onnx 1\ncase,why\n"])
def test_what_is_no_ledger_is_refused(text):
    with pytest.raises(ValueError, match="no ledger"):
        parse_ledger(text)


def test_a_case_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="test_a twice"):
        parse_ledger(render_ledger(LEDGER) + "test_a,refused,\n")


def test_better_worse_and_other_outcomes_differ_from_the_ledger_and_only_those():
    assert explain(LEDGER, Result("test_a", REFUSED, "for another reason")) is None
    assert explain(LEDGER, Result("test_c", PASS)) is None
    assert "passes now" in explain(LEDGER, Result("test_a", PASS))
    assert explain(LEDGER, Result("test_a", WRONG, "values")) == "test_a: wrong, refused expected: values"
    assert explain(LEDGER, Result("test_c", REFUSED, "no")) == "test_c: refused, pass expected: no"


def test_an_update_leaves_what_was_not_run_and_drops_what_is_gone():
    results = [Result("test_a", PASS), Result("test_c", REFUSED, "new")]
    new = update_ledger(LEDGER, results, {"test_a", "test_b", "test_c"}, "1.2.4")
    assert new == Ledger("1.2.4", {"test_b": LEDGER.entries["test_b"], "test_c": Entry(REFUSED, "new")})
    assert update_ledger(LEDGER, results, {"test_a", "test_c"}, "1.2.4").entries.keys() == {"test_c"}
