"""The ledger: every case of the suite that does not pass, with its outcome and why. It can only shrink.

A CSV file. Its first line names the onnx release that the cases are of.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.engines import PASS, Result

LEDGER_PATH = Path(__file__).with_name("ledger.csv")
_HEADER = ("case", "outcome", "reason")


@dataclass(frozen=True)
class Entry:
    """What is known of a case that does not pass. outcome: of engines.OUTCOMES. reason: for people, not compared."""

    outcome: str
    reason: str


@dataclass(frozen=True)
class Ledger:
    """onnx: release of the suite. entries: by case."""

    onnx: str
    entries: Mapping[str, Entry]

    def expected(self, case: str) -> str:
        """The outcome that a case has to have."""
        return self.entries[case].outcome if case in self.entries else PASS


def read_ledger() -> Ledger:
    """The ledger that is checked in."""
    return parse_ledger(LEDGER_PATH.read_text())


def parse_ledger(text: str) -> Ledger:
    """A ledger from its text; ValueError where a case is in it twice, or the text is no ledger."""
    first, _, rows = text.partition("\n")
    reader = csv.DictReader(io.StringIO(rows))
    if not first.startswith("# onnx ") or tuple(reader.fieldnames or ()) != _HEADER:
        raise ValueError("no ledger: it begins with '# onnx <release>' and the names of the columns")
    entries: dict[str, Entry] = {}
    for row in reader:
        if row["case"] in entries:
            raise ValueError(f"the ledger has {row['case']} twice")
        entries[row["case"]] = Entry(row["outcome"], row["reason"])
    return Ledger(first.removeprefix("# onnx ").strip(), entries)


def render_ledger(ledger: Ledger) -> str:
    """The text of a ledger, sorted by case."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows((case, entry.outcome, entry.reason) for case, entry in sorted(ledger.entries.items()))
    return f"# onnx {ledger.onnx}\n{stream.getvalue()}"


def update_ledger(old: Ledger, results: Collection[Result], cases: Collection[str], onnx: str) -> Ledger:
    """The ledger after a run: cases that were run as they came out, the others as they were, none that are gone."""
    ran = {result.case for result in results}
    kept = {case: entry for case, entry in old.entries.items() if case in cases and case not in ran}
    new = {result.case: Entry(result.outcome, result.reason) for result in results if result.outcome != PASS}
    return Ledger(onnx, kept | new)


def explain(ledger: Ledger, result: Result) -> str | None:
    """How a result differs from what the ledger says; None where it does not."""
    expected = ledger.expected(result.case)
    if result.outcome == expected:
        return None
    if result.outcome == PASS:
        return f"{result.case} passes now: take it out of the ledger (--update-ledger)"
    return f"{result.case}: {result.outcome}, {expected} expected: {result.reason}"
