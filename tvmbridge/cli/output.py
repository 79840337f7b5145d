"""How commands print: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tvmbridge.errors import TvmBridgeError


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; to a pipe or a file it is wide enough for every cell."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    console.print(table)


def print_error(error: TvmBridgeError, as_json: bool) -> None:
    """Print what went wrong and what to do: to standard error, or as JSON to standard output."""
    if as_json:
        print_json({"error": describe_error(error)})
    else:
        click.echo(f"error: {error}", err=True)


def describe_error(error: TvmBridgeError) -> dict[str, Any]:
    """An error as JSON has it."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def show_us(time_us: float | None) -> str:
    """A time for people: 12.3 µs, 4.56 ms, or a dash."""
    if time_us is None:
        return "–"
    if time_us < 1000:
        return f"{time_us:.3g} µs"
    return f"{time_us / 1000:.4g} ms" if time_us < 1e6 else f"{time_us / 1e6:.3g} s"
