"""`tvmbridge bench`: a model or a bundle against ONNX Runtime, and where a model's time goes, kernel by kernel."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.cli.bench_bundle import bench_bundle, bench_elsewhere, is_bundle, latency_columns
from tvmbridge.cli.gates import Percent, junit_option
from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import (
    device_option,
    import_model,
    json_option,
    model_options,
    resolve_rpc,
    resolve_targets,
    rpc_option,
)
from tvmbridge.cli.output import print_json, print_table, show_us
from tvmbridge.cli.progress import BuildDisplay
from tvmbridge.errors import AccuracyError, LogError, ReferenceUnavailable, TargetError
from tvmbridge.host import detect_host
from tvmbridge.targets import RpcMeasure, why_not_local

if TYPE_CHECKING:
    from tvmbridge.pipeline import TargetOutcome
    from tvmbridge.profiling import KernelProfile, NetworkProfile
    from tvmbridge.verify.latency import Latency

_OF_A_MODEL = ("shapes", "dims", "target", "targets_file", "log", "per_kernel")
_OF_A_BUNDLE = ("against", "max_regression", "junit", "variant", "device", "rpc")


@click.command("bench")
@model_options
@click.option("-i", "--inputs", type=click.Path(), help="An .npz with one array per input; default: random data.")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="How long to time.")
@click.option("--threads", type=click.IntRange(1), help="Threads a call may use, within the cores there are.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random data.")
@click.option("--target", metavar="NAME", help="Of a model: a target of the file, or a preset; default: native.")
@click.option("--targets", "targets_file", type=click.Path(), help="Of a model: the file that declares targets.")
@click.option("--log", type=click.Path(), help="Of a model: the tuning log whose records decide the schedules.")
@click.option("--per-kernel", is_flag=True, help="Of a model: time, share and rate of each kernel.")
@click.option("--against", type=click.Path(), help="Of a bundle: its ONNX model, for ONNX Runtime; or another bundle.")
@click.option("--max-regression", type=Percent(), metavar="5%", help="Exit with 1 where it takes that much longer.")
@junit_option
@click.option("--variant", help="Of a bundle: this variant; default: the one that fits this machine best.")
@device_option
@rpc_option
@json_option
@isolate_options
def bench_command(
    model: str,
    inputs: str | None,
    seconds: float,
    threads: int | None,
    seed: int,
    against: str | None,
    max_regression: float | None,
    junit: str | None,
    variant: str | None,
    device: str | None,
    rpc: str | None,
    as_json: bool,
    **of_a_model: Any,
) -> int:
    """Time MODEL, an ONNX file or a bundle, beside ONNX Runtime in alternating blocks.

    An ONNX file is built without tuning, or with the records of --log, and compared with ONNX Runtime first; for a
    target that is measured over RPC it is run and timed on a device, as a bundle is with --rpc. ONNX Runtime is not
    timed then. With --per-kernel a table says what each kernel takes in the network, what it takes alone with warm
    caches, and its rate against what this machine was measured to do at most. `tvmbridge -v bench` shows the configs.

    \b
    tvmbridge bench model.onnx --shape x=1x3x224x224 --threads 1 --per-kernel
    tvmbridge bench model.tvmb --threads 2 --against model.onnx --json
    tvmbridge bench model.tvmb --rpc 127.0.0.1:9190/rpi4
    tvmbridge bench model.tvmb --device cuda:1
    tvmbridge bench new.tvmb --against deployed.tvmb --max-regression 5% --junit bench.xml
    """
    given = {name for name, value in of_a_model.items() if value}
    of_a_bundle = dict(zip(_OF_A_BUNDLE, (against, max_regression, junit, variant, device, rpc), strict=True))
    given |= {name for name, value in of_a_bundle.items() if value is not None}
    if is_bundle(model):
        _refuse_options(given, _OF_A_MODEL, "an ONNX model, not of a bundle")
        if max_regression is not None and against is None:
            raise click.UsageError("--max-regression needs --against: longer than what?")
        if rpc is not None:
            if against is not None:
                raise click.UsageError("--against is timed on this machine: leave it or --rpc out")
            if device is not None:
                raise click.UsageError("--device is one of this machine: leave it or --rpc out")
            place = resolve_rpc(rpc)
            assert place is not None
            return bench_elsewhere(
                model, place, inputs, seconds=seconds, variant=variant, threads=threads, seed=seed, as_json=as_json
            )
        return bench_bundle(
            model,
            inputs=inputs,
            against=against,
            max_regression=max_regression,
            junit=junit,
            seconds=seconds,
            variant=variant,
            device=device,
            threads=threads,
            seed=seed,
            as_json=as_json,
        )
    _refuse_options(given, _OF_A_BUNDLE, "a bundle, not of an ONNX model")
    return _bench_model(model, inputs, seconds, threads, seed, as_json, **of_a_model)


def _refuse_options(given: set[str], not_for_this: tuple[str, ...], whose: str) -> None:
    names = {"shapes": "--shape", "dims": "--dim", "targets_file": "--targets", "per_kernel": "--per-kernel"}
    names["max_regression"] = "--max-regression"
    wrong = [names.get(name, f"--{name}") for name in not_for_this if name in given]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)}: options of {whose}")


def _bench_model(
    model: str,
    inputs: str | None,
    seconds: float,
    threads: int | None,
    seed: int,
    as_json: bool,
    *,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    values: tuple[str, ...],
    target: str | None,
    targets_file: str | None,
    log: str | None,
    per_kernel: bool,
) -> int:
    (chosen,) = resolve_targets(targets_file, (target or "native",))
    elsewhere = isinstance(chosen.measure, RpcMeasure)
    if not elsewhere and (obstacle := why_not_local(chosen, detect_host(gpus=chosen.kind == "cuda"))):
        raise TargetError(f"{chosen.name} cannot be timed here: {obstacle}", hint="build a bundle, and time it there")
    if per_kernel and elsewhere:
        raise TargetError("kernels are not timed one by one over RPC", hint="leave --per-kernel out, or run it there")
    if per_kernel and chosen.kind == "cuda":
        raise TargetError("kernels on a GPU cannot be timed one by one yet", hint="leave --per-kernel out")
    if log is not None and not os.path.exists(log):
        raise LogError(f"{log}: no such file", hint="tvmbridge tune makes one; without --log nothing is tuned")
    with BuildDisplay(quiet=as_json, targets=1, resume="") as display, tempfile.TemporaryDirectory() as folder:
        display.say("import", Path(model).name)
        imported = import_model(model, shapes, dims, values)
        from tvmbridge.pipeline import build
        from tvmbridge.profiling import profile_kernels
        from tvmbridge.verify.inputs import read_inputs

        (outcome,) = build(
            imported,
            [chosen],
            Path(folder, "model.tvmb"),
            tune=False,
            log=log,
            inputs=read_inputs(inputs, imported.signature) if inputs is not None else None,
            seed=seed,
            seconds=seconds,
            threads=threads,
            on_event=lambda event: None if event.stage == "write" else display.on_event(event),
        ).outcomes
        latency, used_threads = _require_timed(outcome)
        profile = None
        if per_kernel:
            display.say("profile", chosen.name)
            assert outcome.check is not None
            profile = profile_kernels(
                outcome.kernels,
                outcome.check.kernel_us,
                chosen,
                threads=used_threads,
                on_progress=display.on_kernels,
            )
    if as_json:
        print_json(_describe(outcome, latency, used_threads, profile))
        return 0
    columns, row = latency_columns(chosen.name, used_threads, latency, "ONNX Runtime")
    print_table(columns, [row])
    if profile is not None:
        click.echo()
        _print_profile(profile, latency, configs=click.get_current_context().find_root().params["verbose"])
    return 0


def _require_timed(outcome: TargetOutcome) -> tuple[Latency, int]:
    """The latency of a variant that ran and was right, and its threads; the error that says why there is none."""
    if isinstance(outcome.error, AccuracyError):
        raise AccuracyError(outcome.error.message, hint="the speed of a wrong result says nothing: it is not timed")
    if outcome.error is not None:
        raise outcome.error
    check = outcome.check
    assert check is not None
    if check.latency is None or check.threads is None:
        raise ReferenceUnavailable(
            f"{outcome.target.name} was not run: {check.unverified_because}",
            hint="build a bundle, and time it without --against",
        )
    return check.latency, check.threads


def _print_profile(profile: NetworkProfile, latency: Latency, *, configs: bool) -> None:
    columns = ["kernel", "template", "calls", "each", "total", "share", "alone", "GFLOP/s", "GB/s", "of peak"]
    print_table(
        [*columns, *(["config"] if configs else [])],
        [_kernel_row(kernel, profile, configs=configs) for kernel in profile.kernels],
    )
    peak, fallback = profile.peak, profile.fallback
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    click.echo()
    for name, time_us in profile.runtime_us.items():
        click.echo(f"{name}, a function of TVM's runtime: {show_us(time_us)}")
    if fallback:
        share = f"{profile.share(*fallback):.1%} of the kernels' time"
        click.echo(f"* {len(fallback)} of {len(profile.kernels)} kernels take the fallback template, {share}")
    click.echo(f"peak of {threads}, measured: {peak.gflops:.0f} GFLOP/s, {peak.gb_per_s:.0f} GB/s")
    alone = f"each alone with warm caches {show_us(profile.alone_us)}"
    whole = f"the network {show_us(latency.median_us)}, ONNX Runtime {show_us(latency.reference_us)}"
    click.echo(f"sum of the kernels {show_us(profile.total_us)}, {alone}; {whole}")


def _kernel_row(kernel: KernelProfile, profile: NetworkProfile, *, configs: bool) -> list[str]:
    of_peak = kernel.of_peak(profile.peak)
    row = [
        kernel.name,
        f"{kernel.template}{' *' if kernel.is_fallback else ''}",
        str(kernel.calls),
        show_us(kernel.call_us),
        show_us(kernel.total_us),
        f"{profile.share(kernel):.1%}",
        show_us(kernel.alone_us),
        f"{kernel.gflops:.3g}" if kernel.gflops else "–",
        f"{kernel.gb_per_s:.3g}" if kernel.gb_per_s else "–",
        f"{of_peak:.0%} {kernel.bound(profile.peak)}" if of_peak is not None else "–",
    ]
    return row + ([" ".join(f"{name}={value}" for name, value in kernel.config.items())] if configs else [])


def _describe(outcome: TargetOutcome, latency: Latency, threads: int, profile: NetworkProfile | None) -> dict[str, Any]:
    assert outcome.variant is not None and outcome.variant.accuracy is not None
    return {
        "variant": outcome.target.name,
        "threads": threads,
        "kernels": outcome.variant.kernels,
        "tuned_kernels": outcome.variant.tuned_kernels,
        "max_relative": outcome.variant.accuracy.max_relative,
        **dataclasses.asdict(latency),
        "profile": _describe_profile(profile) if profile is not None else None,
    }


def _describe_profile(profile: NetworkProfile) -> dict[str, Any]:
    return {
        "peak": dataclasses.asdict(profile.peak),
        "total_us": profile.total_us,
        "alone_us": profile.alone_us,
        "runtime_us": dict(profile.runtime_us),
        "fallback_share": profile.share(*profile.fallback),
        "kernels": [
            {
                **dataclasses.asdict(kernel),
                "fallback": kernel.is_fallback,
                "total_us": kernel.total_us,
                "share": profile.share(kernel),
                "gflops": kernel.gflops,
                "gb_per_s": kernel.gb_per_s,
                "bound": kernel.bound(profile.peak),
                "of_peak": kernel.of_peak(profile.peak),
            }
            for kernel in profile.kernels
        ],
    }
