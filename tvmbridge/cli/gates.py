"""What a pipeline's gates share: limits given in percent, and JUnit XML beside the exit code."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from tvmbridge.atomic_file import replacing
from tvmbridge.errors import OutputError

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Case:
    """One check. failure: what is wrong; None where it passed. skipped: why it was not made; None where it was."""

    name: str
    seconds: float = 0.0
    failure: str | None = None
    skipped: str | None = None


def junit_option(command: Command) -> Command:
    """--junit."""
    return click.option("--junit", type=click.Path(), help="Write the result as JUnit XML, too.")(command)


def write_junit(path: str, suite: str, cases: Sequence[Case]) -> None:
    """Write one test suite; raises OutputError."""
    root = ET.Element("testsuites")
    counts = {
        "tests": len(cases),
        "failures": sum(case.failure is not None for case in cases),
        "skipped": sum(case.skipped is not None for case in cases),
        "errors": 0,
    }
    element = ET.SubElement(root, "testsuite", {"name": suite, **{name: str(n) for name, n in counts.items()}})
    for case in cases:
        attributes = {"classname": suite, "name": case.name, "time": f"{case.seconds:.3f}"}
        child = ET.SubElement(element, "testcase", attributes)
        if case.failure is not None:
            ET.SubElement(child, "failure", {"message": _printable(case.failure)})
        if case.skipped is not None:
            ET.SubElement(child, "skipped", {"message": _printable(case.skipped)})
    ET.indent(root)
    try:
        with replacing(Path(path)) as stream:
            stream.write(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    except OSError as exc:
        raise OutputError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c if c.isprintable() else " " for c in text)


class Percent(click.ParamType):
    """ "5%" or "0.05" as 0.05. A number from 1 on needs its %: a gate that takes 5 for 500 % would let all through."""

    name = "percent"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The share; fails on what is none, or below 0."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share < (float("inf") if text.endswith("%") else 1):
            self.fail(f"{value!r} is no share: 5% or 0.05", parameter, context)
        return share
