"""`tvmbridge build`: from an ONNX model to a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import (
    Tuning,
    import_model,
    json_option,
    model_options,
    refuse_replacing,
    resolve_targets,
    seed_option,
    target_options,
    tuning_options,
)
from tvmbridge.cli.output import describe_error, print_json, print_table, show_latency, show_us
from tvmbridge.cli.progress import BuildDisplay
from tvmbridge.cli.tune import describe_tuning
from tvmbridge.errors import OutputError

if TYPE_CHECKING:
    from tvmbridge.pipeline import BuildReport, TargetOutcome

_NAMED = 5  # kernels on the fallback template, or that spill registers, that the text names; --json has all


@click.command("build")
@model_options
@target_options
@click.option("--no-tune", is_flag=True, help="Measure nothing; records in the log are still used.")
@tuning_options
@click.option("-o", "--output", type=click.Path(), help="The bundle to write; default: the model's name with .tvmb.")
@click.option("-i", "--inputs", type=click.Path(), help="An .npz with one array per input, to verify with too.")
@click.option("--tolerance", type=click.FloatRange(0), help="Of the relative error; 1e-3, for float16 1e-2.")
@click.option(
    "--accept-inaccurate", multiple=True, metavar="NAME", help="Write this target even if it misses the tolerance."
)
@seed_option
@json_option
@isolate_options
def build_command(
    model: str,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    values: tuple[str, ...],
    targets_file: str | None,
    names: tuple[str, ...],
    no_tune: bool,
    output: str | None,
    inputs: str | None,
    tolerance: float | None,
    accept_inaccurate: tuple[str, ...],
    seed: int,
    as_json: bool,
    **tuning_texts: Any,
) -> int:
    """Build MODEL for every target into one verified bundle.

    Without --target, all targets of ./targets.yaml are built, or this machine where there is no such file. Each is
    tuned for as long as the file says, unless --no-tune or another budget says otherwise. Ctrl-C keeps what was
    measured: the same command goes on from there.

    \b
    tvmbridge build model.onnx --shape x=1x3x224x224
    tvmbridge build model.onnx --dim batch=1 --target native --target arm:cortex-a72 --minutes 5 -o model.tvmb
    """
    targets = resolve_targets(targets_file, names)
    path = Path(output) if output is not None else Path(Path(model).stem + ".tvmb")
    _refuse_output(path, model, inputs, targets_file, *tuning_texts["logs"])
    tuning = Tuning.parse(tuning_texts, default_log=path.with_suffix(".tune.jsonl"))
    if no_tune and tuning.budget is not None:
        raise click.UsageError("--no-tune leaves nothing to spend a budget on")
    with BuildDisplay(quiet=as_json, targets=len(targets), resume=tuning.resume) as display:
        display.say("import", Path(model).name)
        imported = import_model(model, shapes, dims, values)
        from tvmbridge.pipeline import build
        from tvmbridge.verify.inputs import read_inputs

        report = build(
            imported,
            targets,
            path,
            tune=not no_tune,
            budget=tuning.budget,
            log=tuning.log,
            tuning=tuning.options(),
            inputs=read_inputs(inputs, imported.signature) if inputs is not None else None,
            tolerance=tolerance,
            accept_inaccurate=accept_inaccurate,
            seed=seed,
            on_event=display.on_event,
        )
    if as_json:
        print_json(_describe_report(report))
    else:
        _print_report(report)
    return 1 if report.failed else 0


def _refuse_output(path: Path, model: str, *others: str | None) -> None:
    """Say now, not after minutes of work, that the bundle cannot be written there, or would replace something else."""
    folder = path.parent
    if path.name in ("", "."):
        raise click.UsageError("-o names no file, as in -o model.tvmb")
    if not folder.is_dir():
        raise OutputError(f"{path}: there is no folder {folder}", hint=f"mkdir -p {folder}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file: -o model.tvmb")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: the folder {folder} cannot be written", hint="choose another with -o")
    if path.exists():
        refuse_replacing(path, model, *others)
        with path.open("rb") as file:
            if path.stat().st_size and file.read(4) != b"PK\x03\x04":
                raise OutputError(f"{path} exists and is no bundle", hint="choose another name with -o, or remove it")


def _print_report(report: BuildReport) -> None:
    columns = ["target", "built", "kernels tuned", "verified", "latency", "ONNX Runtime", "seconds"]
    print_table(columns, [_outcome_row(outcome) for outcome in report.outcomes])
    for outcome in report.outcomes:
        name = outcome.target.name
        if outcome.error is not None:
            click.echo(f"{name}: {outcome.error}", err=True)
        if outcome.untuned_because is not None:
            click.echo(f"{name}: not tuned: {outcome.untuned_because}", err=True)
        if outcome.check is not None and outcome.check.unverified_because is not None:
            click.echo(f"{name}: not run here: {' '.join(outcome.check.unverified_because.split())}", err=True)
        for warning in outcome.check.warnings if outcome.check is not None else ():
            click.echo(f"{name}: {warning}", err=True)
        if spills := _show_spills(outcome):
            click.echo(f"{name}: {spills}", err=True)
        if fallback := _show_fallback(outcome):
            click.echo(f"{name}: {fallback}", err=True)
        for plan in outcome.kernels:
            for line in plan.skipped:
                click.echo(f"{name}: {plan.kernel.name} takes {plan.template.name}: {line}", err=True)
    if report.output is not None:
        click.echo(f"wrote {report.output} ({report.output.stat().st_size / 1e6:.1f} MB)")
    else:
        click.echo("no target could be built: nothing was written", err=True)


def _show_fallback(outcome: TargetOutcome) -> str | None:
    """The kernels on the fallback template, the most expensive first; None where there are none."""
    fallback = [kernel for kernel in outcome.shares if kernel.is_fallback]
    if not fallback:
        return None
    named = [
        kernel.name if kernel.share is None else f"{kernel.name} {kernel.share:.1%}" for kernel in fallback[:_NAMED]
    ]
    more = [f"{len(fallback) - len(named)} more"] if len(fallback) > len(named) else []
    shares = [kernel.share for kernel in fallback if kernel.share is not None]
    whole = f"{sum(shares):.1%} of the time" if shares else "share of the time not measured"
    count = f"{len(fallback)} of {len(outcome.kernels)} kernels"
    return f"{count} take the fallback template, {whole}: {', '.join([*named, *more])}"


def _show_spills(outcome: TargetOutcome) -> str | None:
    """The kernels for which an architecture has too few registers, the worst first; None where there are none."""
    if outcome.variant is None or outcome.variant.gpu is None:
        return None
    codes = [
        (code.spill_store_bytes + code.spill_load_bytes, function.kernel, code.architecture)
        for function in outcome.variant.gpu.functions
        for code in function.code
        if code.spills
    ]
    if not codes:
        return None
    worst = sorted(codes, key=lambda code: (-code[0], code[1:]))
    named = [f"{kernel} on {architecture} ({size} bytes)" for size, kernel, architecture in worst[:_NAMED]]
    more = [f"{len(worst) - len(named)} more"] if len(worst) > len(named) else []
    count = len({kernel for _, kernel, _ in codes})
    kernels = "1 kernel keeps" if count == 1 else f"{count} kernels keep"
    return f"{kernels} values in local memory for want of registers: {', '.join([*named, *more])}"


def _outcome_row(outcome: TargetOutcome) -> list[str]:
    seconds = f"{outcome.seconds:.1f}"
    variant = outcome.variant
    if variant is None:
        return [outcome.target.name, "failed", "–", "–", "–", "–", seconds]
    accuracy = variant.accuracy
    latency = outcome.check.latency if outcome.check else None
    verified = f"{accuracy.max_relative:.1e} relative" if accuracy is not None else "not run here"
    return [
        outcome.target.name,
        "yes",
        f"{variant.tuned_kernels} of {variant.kernels}",
        verified,
        show_latency(variant.latency_us, variant.emulated),
        show_us(latency.reference_us if latency else None),
        seconds,
    ]


def _describe_report(report: BuildReport) -> dict[str, Any]:
    import msgspec

    return {
        "output": str(report.output) if report.output is not None else None,
        "model": msgspec.to_builtins(report.model),
        "targets": [_describe_outcome(outcome) for outcome in report.outcomes],
    }


def _describe_outcome(outcome: TargetOutcome) -> dict[str, Any]:
    import msgspec

    variant = outcome.variant
    shares = {kernel.name: kernel for kernel in outcome.shares}
    return {
        "target": msgspec.to_builtins(outcome.target),
        "seconds": round(outcome.seconds, 3),
        "built": variant is not None,
        "error": describe_error(outcome.error) if outcome.error is not None else None,
        "tuned_kernels": variant.tuned_kernels if variant else None,
        "accuracy": msgspec.to_builtins(variant.accuracy) if variant else None,
        "unverified_because": variant.unverified_because if variant else None,
        "latency_us": variant.latency_us if variant else None,
        "emulated": variant.emulated if variant else None,
        "reference_us": outcome.check.latency.reference_us if outcome.check and outcome.check.latency else None,
        "warnings": list(outcome.check.warnings) if outcome.check else [],
        "untuned_because": outcome.untuned_because,
        "tuning": describe_tuning(outcome.tuning) if outcome.tuning is not None else None,
        "gpu": msgspec.to_builtins(variant.gpu) if variant else None,
        "kernels": [
            {
                "name": plan.kernel.name,
                "kernel": plan.kernel.key,
                "calls": plan.kernel.calls,
                "template": plan.template.name,
                "config": plan.config,
                "fallback": shares[plan.kernel.name].is_fallback,
                "total_us": shares[plan.kernel.name].total_us,
                "share": shares[plan.kernel.name].share,
                "tuned": plan.record is not None,
                "skipped": list(plan.skipped),
            }
            for plan in outcome.kernels
        ],
    }
