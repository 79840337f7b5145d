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
    """Print one JSON document to standard output. A float must be finite: JSON has no other."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; the first column is never folded, and nothing is where that is no terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)  # brackets in names and messages are themselves
    if console.is_terminal:
        console.print(table)
        return
    width = sum(max(map(len, cells)) + 2 for cells in zip(columns, *rows, strict=True))
    wide = Console(highlight=False, markup=False, width=width)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_error(error: TvmBridgeError, as_json: bool) -> None:
    """Print what went wrong and what to do: to standard error, or as JSON to standard output."""
    if as_json:
        print_json({"error": describe_error(error)})
    else:
        click.echo(f"error: {error}", err=True)


def describe_error(error: TvmBridgeError) -> dict[str, Any]:
    """An error as JSON has it, with what its class adds: dimensions, operators, reasons."""
    return {"kind": type(error).__name__, **vars(error)}


def show_latency(time_us: float | None, emulated: bool) -> str:
    """A measured time for people, and where it is no real machine's, that."""
    return f"{show_us(time_us)} emulated" if emulated and time_us is not None else show_us(time_us)


def show_us(time_us: float | None) -> str:
    """A time for people: 9.5 ns, 12.3 µs, 4.56 ms, or a dash."""
    if time_us is None:
        return "–"
    if time_us < 1:
        return f"{time_us * 1000:.3g} ns"
    if time_us < 1000:
        return f"{time_us:.3g} µs"
    return f"{time_us / 1000:.4g} ms" if time_us < 1e6 else f"{time_us / 1e6:.3g} s"
