"""`tvmbridge log export` and `tvmbridge log import`: tuning records to and from MetaSchedule databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import binding_options, import_model, json_option, resolve_targets, target_options
from tvmbridge.cli.output import print_json
from tvmbridge.targets import Target

if TYPE_CHECKING:
    from tvmbridge.tuning.exchange import Exchanged

_model = click.option("--model", type=click.Path(), required=True, help="The ONNX model that has the kernels.")


@click.command("export")
@click.argument("log", type=click.Path())
@_model
@binding_options
@target_options
@click.option("-o", "--output", type=click.Path(), required=True, help="The folder to write the database to.")
@json_option
@isolate_options
def export_command(
    log: str,
    model: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    targets_file: str | None,
    names: tuple[str, ...],
    output: str,
    as_json: bool,
) -> int:
    """Write the records of a model's kernels in LOG as a MetaSchedule database.

    \b
    tvmbridge log export model.tune.jsonl --model model.onnx --target native -o database
    """
    target = _one_target(targets_file, names)
    from tvmbridge.tuning.exchange import export_database

    _print(export_database(log, import_model(model, shapes, dims), target, output), output, as_json)
    return 0


@click.command("import")
@click.argument("database", type=click.Path())
@_model
@binding_options
@target_options
@click.option("-o", "--output", type=click.Path(), required=True, help="The log to append to; what it holds is kept.")
@json_option
@isolate_options
def import_command(
    database: str,
    model: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    targets_file: str | None,
    names: tuple[str, ...],
    output: str,
    as_json: bool,
) -> int:
    """Append what the MetaSchedule database in the folder DATABASE says of a model's kernels to a log.

    \b
    tvmbridge log import database --model model.onnx --target native -o model.tune.jsonl
    """
    target = _one_target(targets_file, names)
    from tvmbridge.tuning.exchange import import_database

    _print(import_database(database, import_model(model, shapes, dims), target, output), output, as_json)
    return 0


def _one_target(targets_file: str | None, names: Sequence[str]) -> Target:
    targets = resolve_targets(targets_file, names)
    if len(targets) > 1:
        raise click.UsageError(
            f"a MetaSchedule database is of one target: name one of {', '.join(t.name for t in targets)} with --target"
        )
    return targets[0]


def _print(done: Exchanged, output: str, as_json: bool) -> None:
    if as_json:
        print_json({"output": output, "mapped": done.mapped, "kernels": done.kernels, "left": done.left})
        return
    total = done.mapped + sum(done.left.values())
    click.echo(f"wrote {output}: {done.mapped} of {total} records, of {done.kernels} kernels")
    for why, count in sorted(done.left.items(), key=lambda item: -item[1]):
        click.echo(f"left out {count}: {why}")
