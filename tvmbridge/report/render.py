"""A tuning report as one HTML page that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import importlib.resources
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from tvmbridge.bundle import ModelFacts
from tvmbridge.report import TargetReport
from tvmbridge.report.charts import draw_shares, draw_steps
from tvmbridge.version import PROGRAM


def render_report(
    model: ModelFacts, logs: Sequence[str], targets: Sequence[TargetReport], show_us: Callable[[float | None], str]
) -> str:
    """Write the page. Whatever names and messages hold is text in it, never markup.

    logs: their paths. show_us: writes a time in microseconds for people.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(us=show_us, number=_show_number, ratio=_show_ratio, config=_show_config)
    source = importlib.resources.files("tvmbridge.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        model=model,
        logs=logs,
        targets=targets,
        program=PROGRAM,
        draw_steps=lambda points, trials, **box: draw_steps(points, trials, show_us, **box),
        draw_shares=draw_shares,
    )


def _show_number(number: float | None) -> str:
    return f"{number:.3g}" if number else "–"


def _show_ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _show_config(config: dict[str, object] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.items()) if config else "–"


def _printable(value: Any) -> Any:
    """HTML has no place for control characters, halves of surrogate pairs and what is no character at all."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join("\ufffd" if _is_no_text(c) else c for c in value)


def _is_no_text(character: str) -> bool:
    control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n"
    return control or character in "\ufffe\uffff"
