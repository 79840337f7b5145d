"""`tvmbridge report`: what tuning has brought a model, as one HTML page."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.atomic_file import replacing
from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import (
    import_model,
    json_option,
    model_options,
    refuse_replacing,
    resolve_targets,
    target_options,
)
from tvmbridge.cli.output import print_json, show_us
from tvmbridge.cli.progress import BuildDisplay
from tvmbridge.errors import LogError, OutputError

if TYPE_CHECKING:
    from tvmbridge.report import TargetReport


@click.command("report")
@model_options
@target_options
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(),
    help="A tuning log, or a folder of them; default: the model's name with .tune.jsonl. Repeatable.",
)
@click.option("-o", "--output", type=click.Path(), help="The page to write; default: the model's name with .html.")
@json_option
@isolate_options
def report_command(
    model: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    targets_file: str | None,
    names: tuple[str, ...],
    logs: tuple[str, ...],
    output: str | None,
    as_json: bool,
) -> int:
    """Report what tuning has brought MODEL: curves, gains, shares of the time, failures. Measures nothing.

    The page needs nothing but itself: it can be mailed, or kept as an artifact of a CI run. --json prints what is in
    it, and writes the page only where -o names it.

    \b
    tvmbridge report model.onnx --dim batch=1 --log model.tune.jsonl -o report.html
    tvmbridge report model.onnx --dim batch=1 --target native --target edge --log model.tune.jsonl --log /shared/logs
    """
    targets = resolve_targets(targets_file, names)
    paths = logs or (Path(model).stem + ".tune.jsonl",)
    page = Path(output or Path(model).stem + ".html") if output is not None or not as_json else None
    if page is not None:
        refuse_replacing(page, model, targets_file, *paths)
    for path in paths:
        if not os.path.exists(path):
            raise LogError(f"{path}: no such tuning log", hint="name it with --log, or make it: tvmbridge tune")
    with BuildDisplay(quiet=as_json, targets=len(targets), resume="") as display:
        display.say("import", Path(model).name)
        imported = import_model(model, shapes, dims)
        from tvmbridge.bundle import ModelFacts
        from tvmbridge.report import report_target
        from tvmbridge.report.render import render_report
        from tvmbridge.tuning.log import read_logs

        records, reports = read_logs(paths), []
        for target in targets:
            display.say("lower", target.name)
            reports.append(report_target(imported, target, records))
    facts = ModelFacts(imported.name, imported.sha256, imported.opset)
    if page is not None:
        _write_page(page, render_report(facts, paths, reports, show_us))
    if as_json:
        described = {"name": facts.name, "sha256": facts.sha256, "opset": facts.opset}
        print_json({"model": described, "logs": list(paths), "targets": [_describe(report) for report in reports]})
    else:
        click.echo(f"wrote {page}")
    return 0


def _describe(report: TargetReport) -> dict[str, Any]:
    described = dataclasses.asdict(report)
    for kernel, fields in zip(report.kernels, described["kernels"], strict=True):
        fields.update(gain=kernel.gain, checked_gain=kernel.checked_gain, gflops=kernel.gflops)
    return {**described, "failed": report.failed, "before_us": report.before_us, "after_us": report.after_us}


def _write_page(path: Path, page: str) -> None:
    """In one step, or not at all."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file: -o report.html")
    try:
        with replacing(path) as stream:
            stream.write(page.encode())
    except OSError as exc:
        raise OutputError(
            f"{path}: cannot write the report: {exc.strerror or exc}", hint="choose another place with -o"
        ) from exc
