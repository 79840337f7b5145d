"""`tvmbridge tune`: measures schedules for a model's kernels, into a tuning log."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import (
    Tuning,
    import_model,
    json_option,
    model_options,
    resolve_targets,
    seed_option,
    target_options,
    tuning_options,
)
from tvmbridge.cli.output import describe_error, print_json, print_table, show_us
from tvmbridge.cli.progress import BuildDisplay
from tvmbridge.errors import TvmBridgeError

if TYPE_CHECKING:
    from tvmbridge.frontend import ImportedModel
    from tvmbridge.targets import Target
    from tvmbridge.tuning.outlook import TuningOutlook
    from tvmbridge.tuning.progress import TuneProgress


@click.command("tune")
@model_options
@target_options
@tuning_options
@click.option("--dry-run", is_flag=True, help="Show what would be searched, and how long it may take; measure nothing.")
@seed_option
@json_option
@isolate_options
def tune_command(
    model: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    values: tuple[str, ...],
    targets_file: str | None,
    names: tuple[str, ...],
    dry_run: bool,
    seed: int,
    as_json: bool,
    **tuning_texts: Any,
) -> int:
    """Measure schedules for MODEL's kernels, and append every trial to the log.

    What a log holds already is not measured again. At the end the best are timed against the untuned choices in the
    whole network, and only what wins there counts. Ctrl-C keeps what was measured: the same command goes on from
    there. `tvmbridge build --log` uses the log.

    \b
    tvmbridge tune model.onnx --dim batch=1 --target native --express
    tvmbridge tune model.onnx --dim batch=1 --minutes 10 --log model.tune.jsonl --log /shared/logs
    tvmbridge tune model.onnx --dim batch=1 --dry-run
    """
    targets = resolve_targets(targets_file, names)
    tuning = Tuning.parse(tuning_texts, default_log=Path(Path(model).stem + ".tune.jsonl"))
    if dry_run:
        return _dry_run(import_model(model, shapes, dims, values), targets, tuning, as_json)
    unlimited = [target.name for target in targets if tuning.budget is None and target.budget is None]
    if unlimited:
        raise click.UsageError(f"say how long to tune {', '.join(unlimited)}: --express, --minutes 10 or --trials 500")
    results, failures = [], {}
    with BuildDisplay(quiet=as_json, targets=len(targets), resume=tuning.resume) as display:
        display.say("import", Path(model).name)
        imported = import_model(model, shapes, dims, values)
        from tvmbridge.tuning.tune import tune

        for target in targets:
            budget = tuning.budget or target.budget
            assert budget is not None
            try:
                results.append(
                    tune(
                        imported,
                        target,
                        budget=budget,
                        log=tuning.log,
                        seed=seed,
                        options=tuning.options(),
                        on_progress=display.on_tuning,
                    )
                )
            except TvmBridgeError as exc:
                failures[target.name] = exc
    if as_json:
        failed = {name: describe_error(failure) for name, failure in failures.items()}
        described = [describe_tuning(result) for result in results]
        print_json({"log": str(tuning.log), "targets": described, "failed": failed})
    else:
        for result in results:
            print_tuning(result)
        if results:
            click.echo(f"wrote {tuning.log}")
        for name, failure in failures.items():
            click.echo(f"{name}: {failure}", err=True)
    return 1 if failures else 0


def print_tuning(result: TuneProgress) -> None:
    """What a run brought: each kernel's gain, the network's, and what was known before."""
    rows = []
    for gain in sorted(result.kernels, key=lambda gain: -(gain.untuned_us or 0.0) * gain.calls):
        ratio = f"{gain.untuned_us / gain.best_us:.2f}x" if gain.untuned_us and gain.best_us else "–"
        trials = f"{gain.trials} of {_count(gain.configs)}"
        rows.append([gain.name, str(gain.calls), trials, show_us(gain.untuned_us), show_us(gain.best_us), ratio])
    if rows:
        print_table(["kernel", "calls", "trials", "untuned", "best alone", "gain"], rows)
    name = f"{result.target} (emulated)" if result.emulated else result.target
    spent = f"{result.trials} trials in {result.elapsed_s:.0f} s, {result.failed} failed: {result.ended}"
    click.echo(f"{name}: {spent}")
    if result.known:
        kernels = f"{result.known_kernels} of {len(result.kernels)} kernels"
        click.echo(f"{name}: found in logs: {kernels}, {result.known} trials, {result.elsewhere} of them in other logs")
    if result.check is not None:
        check = result.check
        click.echo(
            f"{name}: whole network {show_us(check.untuned_us)} → {show_us(check.tuned_us)} "
            f"({check.untuned_us / check.tuned_us:.2f}x), {len(check.dropped)} of {len(result.kernels)} kernels stay "
            "untuned"
        )
    for gpu in result.gpus:
        click.echo(f"{name}: measured on a machine with {gpu}")
    if result.problem is not None:
        click.echo(f"{name}: no final check: {result.problem}", err=True)


def describe_tuning(progress: TuneProgress) -> dict[str, Any]:
    """A run for --json."""
    import msgspec

    described = {field.name: getattr(progress, field.name) for field in dataclasses.fields(progress)}
    described["budget"] = msgspec.to_builtins(progress.budget)
    described["kernels"] = [dataclasses.asdict(gain) for gain in progress.kernels]
    if progress.check is not None:
        check = progress.check
        described["check"] = {
            "untuned_us": check.untuned_us,
            "tuned_us": check.tuned_us,
            "dropped": list(check.dropped),
            "records": msgspec.to_builtins(check.records),
        }
    return described


def _count(configs: int | None) -> str:
    return "–" if configs is None else str(configs)


def _dry_run(model: ImportedModel, targets: tuple[Target, ...], tuning: Tuning, as_json: bool) -> int:
    from tvmbridge.tuning.log import read_logs
    from tvmbridge.tuning.outlook import foresee

    records = read_logs([tuning.log, *tuning.also])
    outlooks = [foresee(model, each, records, tuning.budget or each.budget, tuning.engine) for each in targets]
    if as_json:
        described = []
        for each in outlooks:
            described.append({**dataclasses.asdict(each), "configs": each.configs, "known": each.known})
        print_json({"log": str(tuning.log), "targets": described})
        return 0
    for outlook in outlooks:
        _print_outlook(outlook)
    return 0


def _print_outlook(outlook: TuningOutlook) -> None:
    rows = [
        [
            task.name,
            str(task.calls),
            f"{task.share:.1%}",
            _count(task.configs),
            str(task.known),
            ", ".join(task.templates),
        ]
        for task in outlook.tasks
    ]
    click.echo(outlook.target)
    share = "share" if outlook.measured_shares else "share (estimated)"
    print_table(["kernel", "calls", share, "configs", "known", "templates"], rows)
    click.echo(
        f"{outlook.configs} configs of {len(outlook.tasks)} kernels, {outlook.known} measured; "
        f"about {outlook.trials} trials, {outlook.minutes:.1f} min, and the final check"
    )
