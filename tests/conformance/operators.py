"""Writes docs/operators.md: operator × op-set × status, from the ledger and the models of the cases."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import defs

from tests.conformance.cases import Case
from tests.conformance.ledger import Ledger
from tvmbridge.frontend.contrib import CONTRIB_OPERATORS, DOMAIN

OPERATORS_PATH = Path(__file__).parents[2] / "docs" / "operators.md"
_REASONS = 3
_REASON_LENGTH = 110
_INTRODUCTION = """# Operators

What of ONNX tvmbridge imports, compiles and computes as the specification says, measured with the ONNX project's own
backend suite (onnx {release}, without the training and ai.onnx.ml domains): **{passed} of {total} cases pass**.
`tests/conformance/ledger.csv` has the others, each with its reason. What is refused is refused by name when a model is
imported.

This page is generated from the ledger by `python -m tests.conformance --update-ledger`, and a test compares the two;
[conformance.md](conformance.md) says how the suite is run.

* **Op-sets**: the versions of the operator that the cases use. Op-set 12 has the version 11 of an operator that has the
  versions 11 and 13.
* **Cases**: how many pass, of those that have the operator and pass, or fail because of it: it is the only one of the
  case, or the reason names it. Where none passes, of all that have it.
* **Status**: *yes*: all of its cases pass; *partly*: some do; *no*: none does; *untested*: the suite has none.

| Operator | Op-sets | Cases | Status | What is missing |
|---|---|---|---|---|
"""
_CONTRIB = """
## ONNX Runtime's own operators

Of the domain {domain} these are taken too, each as the standard nodes that it stands for
(`tvmbridge/frontend/contrib/`); `tests/test_contrib.py` holds them against ONNX Runtime: {names}.
"""


@dataclasses.dataclass
class _Row:
    """versions: that the cases use. passed: how many cases. blamed, others: why cases do not, and how many for each."""

    versions: set[int] = dataclasses.field(default_factory=set)
    passed: int = 0
    blamed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def render_operators(ledger: Ledger, cases: Mapping[str, Case]) -> str:
    """The page, in Markdown."""
    rows = {schema.name: _Row() for schema in defs.get_all_schemas() if schema.domain == ""}
    for name, case in cases.items():
        versions: dict[str, set[int]] = {}
        for operator, version in _operators(case.model()):
            versions.setdefault(operator, set()).add(version)
        entry = ledger.entries.get(name)
        for operator, found in versions.items():
            row = rows.setdefault(operator, _Row())
            row.versions |= found
            if entry is None:
                row.passed += 1
            else:
                reasons = row.blamed if _is_blamed(operator, entry.reason, len(versions)) else row.others
                reasons[_shorten(entry.outcome, entry.reason)] += 1
    text = _INTRODUCTION.format(release=ledger.onnx, passed=len(cases) - len(ledger.entries), total=len(cases))
    text += "".join(_render_row(operator, rows[operator]) for operator in sorted(rows, key=str.lower))
    return text + _CONTRIB.format(domain=DOMAIN, names=", ".join(CONTRIB_OPERATORS))


def write_operators(ledger: Ledger, cases: Mapping[str, Case]) -> None:
    """Write the page where the documentation has it."""
    OPERATORS_PATH.write_text(render_operators(ledger, cases))


def _operators(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Each of the model's operators, those of subgraphs and local functions included, and its version there."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    for node in _nodes([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        domain = node.domain or "ai.onnx"
        schema_domain = "" if domain == "ai.onnx" else domain
        if defs.has(node.op_type, schema_domain):
            version = defs.get_schema(node.op_type, opsets.get(domain, 1), schema_domain).since_version
            yield f"{domain}.{node.op_type}".removeprefix("ai.onnx."), version


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _is_blamed(operator: str, reason: str, operators: int) -> bool:
    """Whether a case of so many operators fails because of this one."""
    return operators == 1 or re.search(rf"\b{operator.rpartition('.')[2]}\b", reason) is not None


def _shorten(outcome: str, reason: str) -> str:
    text = re.sub(r"ai\.onnx\.|\(op-set \d+\): ?", "", reason).replace("|", "\\|").replace("<", "&lt;")
    text = text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH].rstrip()} …"
    return text if outcome == "refused" else f"{outcome}: {text}"


def _render_row(operator: str, row: _Row) -> str:
    failed = row.blamed if row.passed else row.blamed + row.others
    total = row.passed + failed.total()
    status = "untested" if not total else "yes" if not failed else "partly" if row.passed else "no"
    reasons = [why for why, _ in sorted(failed.items(), key=lambda item: (-item[1], item[0]))]
    missing = "; ".join(reasons[:_REASONS]) + (f"; {len(reasons) - _REASONS} more" if reasons[_REASONS:] else "")
    versions = ", ".join(map(str, sorted(row.versions))) or "—"
    return f"| {operator} | {versions} | {row.passed}/{total} | {status} | {missing} |\n"
