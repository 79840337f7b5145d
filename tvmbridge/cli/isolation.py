"""--isolate: a command runs again in a process of its own, within limits, and this one watches it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from tvmbridge.child import child_command
from tvmbridge.cli.options import Tuning, resolve_targets
from tvmbridge.isolate import Limits, become_isolated, is_isolated, run_within

Command = TypeVar("Command", bound=Callable[..., Any])

MINUTES = 30.0  # beside those that tuning may take


def isolate_options(command: Callable[..., int]) -> Callable[..., int]:
    """--isolate and its limits. Stands nearest to the command: all other options are those of the inner call too."""

    @functools.wraps(command)
    def isolated(isolate: bool, isolate_memory: float | None, isolate_minutes: float | None, **values: Any) -> int:
        if is_isolated():
            become_isolated()
            return command(**values)
        if not isolate and isolate_memory is None and isolate_minutes is None:
            return command(**values)
        minutes = isolate_minutes if isolate_minutes is not None else _default_minutes(values)
        limits = Limits(
            memory_bytes=int(isolate_memory * 1e9) if isolate_memory is not None else None,
            timeout_s=minutes * 60 if minutes is not None else None,
        )
        arguments = click.get_current_context().find_root().obj
        return run_within(limits, child_command("tvmbridge", *arguments))

    return _options(isolated)


def _options(command: Command) -> Command:
    command = click.option(
        "--isolate-minutes",
        type=click.FloatRange(0, min_open=True),
        help=f"With --isolate: time at most; default: {MINUTES:g}, and what tuning may take.",
    )(command)
    command = click.option(
        "--isolate-memory",
        type=click.FloatRange(0, min_open=True),
        metavar="GB",
        help="With --isolate: memory at most; default: three quarters of what there is.",
    )(command)
    return click.option(
        "--isolate",
        is_flag=True,
        help="Work in a process of its own, for models that nobody vouches for: a crash or a limit there is an error.",
    )(command)


def _default_minutes(values: Mapping[str, Any]) -> float | None:
    """None where tuning may take as long as it likes."""
    if "until_converged" not in values or values.get("no_tune") or values.get("dry_run"):
        return MINUTES
    given = Tuning.parse(values, default_log=Path("unused")).budget
    minutes = MINUTES
    for target in resolve_targets(values["targets_file"], values["names"]):
        budget = given or target.budget
        if budget is not None and budget.minutes is None:
            return None
        minutes += budget.minutes or 0.0 if budget is not None else 0.0
    return minutes
