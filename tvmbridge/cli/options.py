"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from tvmbridge.errors import OutputError, TargetError
from tvmbridge.targets import RpcMeasure, Target, load_targets, parse_preset
from tvmbridge.targets.declared import RPC_KEY_PATTERN, TRACKER_PATTERN
from tvmbridge.tuning.budget import EXPRESS, FULL, Budget

if TYPE_CHECKING:
    from tvmbridge.frontend import ImportedModel
    from tvmbridge.tuning.tune import TuneOptions

Command = TypeVar("Command", bound=Callable[..., Any])

TARGETS_FILE = "targets.yaml"
ENGINES = ("templates", "metaschedule")  # as in tuning.tune, which takes seconds to import


def json_option(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def model_options(command: Command) -> Command:
    """The ONNX model and the binding of its free dimensions."""
    return click.argument("model", type=click.Path())(binding_options(command))


def binding_options(command: Command) -> Command:
    """--shape, --dim and --value."""
    command = click.option(
        "--value",
        "values",
        multiple=True,
        metavar="INPUT=JSON",
        help="Bind an input that decides shapes, as JSON or .npy file: --value axes=[0,1]. It is no input then.",
    )(command)
    command = click.option(
        "--dim", "dims", multiple=True, metavar="NAME=N", help="Bind a named dimension: --dim batch=1."
    )(command)
    return click.option(
        "--shape", "shapes", multiple=True, metavar="INPUT=SHAPE", help="Bind an input's shape: --shape x=1x3x224x224."
    )(command)


def target_options(command: Command) -> Command:
    """--targets and --target."""
    command = click.option(
        "--target",
        "names",
        multiple=True,
        metavar="NAME",
        help="A target of the file, or a preset: native, x86:x86-64-v3, arm:cortex-a72, cuda:sm_80,sm_90. Repeatable.",
    )(command)
    return click.option(
        "--targets",
        "targets_file",
        type=click.Path(),
        help=f"The file that declares targets; ./{TARGETS_FILE} is read without being named.",
    )(command)


def rpc_option(command: Command) -> Command:
    """--rpc; `resolve_rpc` reads it."""
    return click.option(
        "--rpc",
        metavar="TARGET or HOST:PORT/KEY",
        help="Run on a device: of a target of the targets.yaml that is measured over RPC, or of a tracker's key.",
    )(command)


def resolve_rpc(text: str | None, targets_file: str | None = None) -> RpcMeasure | None:
    """Where --rpc says to run; None for here. A name is looked up in the file, or in ./targets.yaml."""
    if text is None:
        return None
    tracker, slash, key = text.partition("/")
    if slash:
        if not re.fullmatch(TRACKER_PATTERN, tracker) or not re.fullmatch(RPC_KEY_PATTERN, key):
            raise click.UsageError(f"--rpc {text}: not HOST:PORT/KEY, as in 127.0.0.1:9190/rpi4")
        return RpcMeasure(tracker=tracker, key=key)
    (target,) = resolve_targets(targets_file, (text,))
    if not isinstance(target.measure, RpcMeasure):
        raise TargetError(f"--rpc {text}: that target is not measured over RPC", hint="--rpc 127.0.0.1:9190/rpi4")
    return target.measure


def device_option(command: Command) -> Command:
    """Where a bundle is to run."""

    def check(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
        if text is not None:
            from tvmbridge.runtime.devices import parse_device

            try:
                parse_device(text)
            except ValueError as exc:
                raise click.BadParameter(str(exc)) from exc
        return text

    return click.option("--device", callback=check, help='"cpu", "cuda" or "cuda:N"; default: what fits best.')(command)


def seed_option(command: Command) -> Command:
    """--seed."""
    return click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random data and of the search."
    )(command)


def tuning_options(command: Command) -> Command:
    """How long to tune, with what, and where the records are; `Tuning.parse` reads them."""
    options = (
        click.option("--trials", type=click.IntRange(0), help="Trials per target, those in the logs too."),
        click.option("--minutes", type=click.FloatRange(0), help="Time to tune each target for."),
        click.option("--express", is_flag=True, help=f"Most of the gain: --minutes {EXPRESS.minutes:g}."),
        click.option("--full", is_flag=True, help=f"Until nothing more is won, at most {FULL.minutes:g} minutes."),
        click.option("--until-converged", is_flag=True, help="Until nothing more is won, however long it takes."),
        click.option(
            "--log",
            "logs",
            multiple=True,
            type=click.Path(),
            help="The tuning log, read and appended to; default: beside the output, *.tune.jsonl. "
            "Repeatable: further logs, or folders of logs, are read only.",
        ),
        click.option(
            "--engine",
            type=click.Choice(ENGINES),
            default=ENGINES[0],
            show_default=True,
            help="What searches: the configs of tvmbridge's templates, or the spaces of TVM's MetaSchedule.",
        ),
        click.option(
            "--cluster", metavar="ADDRESS", help="Compile on the workers of this dask scheduler, tcp://host:8786."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What `tuning_options` said. budget: None where they set no limit. also: further logs, read only."""

    budget: Budget | None
    log: Path
    also: tuple[str, ...]
    engine: str
    cluster: str | None

    @classmethod
    def parse(cls, texts: Mapping[str, Any], *, default_log: Path) -> Tuning:
        """Read the values of the options."""
        ways = {
            "--express": EXPRESS if texts["express"] else None,
            "--full": FULL if texts["full"] else None,
            "--until-converged": Budget(until_converged=True) if texts["until_converged"] else None,
            "--trials and --minutes": _limits(texts["trials"], texts["minutes"]),
        }
        given = {name: budget for name, budget in ways.items() if budget is not None}
        if len(given) > 1:
            raise click.UsageError(f"{', '.join(given)}: give one of them")
        first, *others = texts["logs"] or [default_log]
        if os.path.isdir(first):
            raise click.UsageError(f"--log {first}: the first log is appended to, and so is a file, not a folder")
        budget = next(iter(given.values()), None)
        return cls(budget, Path(first), tuple(others), texts["engine"], texts["cluster"])

    @property
    def resume(self) -> str:
        """What to say to somebody who interrupts."""
        return f"run the same command again to go on from {self.log}"

    def options(self) -> TuneOptions:
        """For `tune` and `build`."""
        from tvmbridge.tuning.tune import TuneOptions

        return TuneOptions(also=self.also, engine=self.engine, cluster=self.cluster)


def _limits(trials: int | None, minutes: float | None) -> Budget | None:
    return None if trials is None and minutes is None else Budget(trials, minutes)


def import_model(model: str, shapes: Sequence[str], dims: Sequence[str], values: Sequence[str] = ()) -> ImportedModel:
    """Import the ONNX file with the bindings that were given as text."""
    from tvmbridge.frontend import import_onnx

    return import_onnx(model, **parse_bindings(shapes, dims, values))


def parse_bindings(shapes: Sequence[str], dims: Sequence[str], values: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The bindings that were given as text, as `import_onnx` takes them."""
    return {
        "shapes": {name: _parse_shape(text) for name, text in _pairs(shapes, "--shape x=1x3x224x224")},
        "dims": {name: _parse_size(text) for name, text in _pairs(dims, "--dim batch=1")},
        "values": {name: _parse_value(name, text) for name, text in _pairs(values, "--value axes=[0,1]")},
    }


def _parse_value(name: str, text: str) -> Any:
    """A value as JSON, or the array of an .npy file."""
    try:
        return np.load(text, allow_pickle=False) if text.endswith(".npy") else json.loads(text)
    except (OSError, ValueError) as exc:
        raise click.UsageError(f"--value {name}: {text!r} is no JSON and no .npy file: {exc}") from exc


def _pairs(texts: Sequence[str], example: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.rpartition("=")  # the last one: ONNX names may hold any character
        if not equals or not name or not value:
            raise click.UsageError(f"{text!r} is not NAME=VALUE, as in {example}")
        pairs.append((name, value))
    return pairs


def _parse_shape(text: str) -> tuple[int, ...]:
    return () if text == "scalar" else tuple(_parse_size(axis) for axis in text.lower().split("x"))


def _parse_size(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise click.UsageError(f"{text!r} is not a size: whole numbers, as in 1x3x224x224")
    return int(text)


def resolve_targets(targets_file: str | None, names: Sequence[str]) -> tuple[Target, ...]:
    """The targets that were asked for: those named, else all of the file, else this machine.

    A name is looked up in the file first and then read as a preset.
    """
    path = targets_file or (TARGETS_FILE if os.path.exists(TARGETS_FILE) else None)
    declared = load_targets(path) if path is not None else ()
    if not names:
        return declared or (parse_preset("native"),)
    by_name = {target.name: target for target in declared}
    chosen = []
    for name in names:
        if name in by_name:
            chosen.append(by_name[name])
            continue
        try:
            chosen.append(parse_preset(name))
        except TargetError as exc:
            if not by_name:
                raise
            raise TargetError(
                f"--target {name}: {path} declares no such target (it has {', '.join(by_name)}), and as a preset: "
                f"{exc.message}",
                hint=exc.hint,
            ) from exc
    twice = {target.name for target in chosen if sum(other.name == target.name for other in chosen) > 1}
    if twice:
        raise click.UsageError(f"--target: {', '.join(sorted(twice))} is given twice")
    return tuple(chosen)


def refuse_replacing(output: str | os.PathLike[str], *inputs: str | None) -> None:
    """OutputError where the output is one of the files that the command reads."""
    for read in inputs:
        if read is not None and os.path.exists(read) and os.path.exists(output) and os.path.samefile(read, output):
            raise OutputError(f"{output} is an input of this command, which the output would replace")
