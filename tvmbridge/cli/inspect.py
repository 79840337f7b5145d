"""`tvmbridge inspect`, `check`, `targets` and `doctor`: what is in a bundle, and what fits this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.cli.options import device_option, json_option, resolve_targets, target_options
from tvmbridge.cli.output import print_json, print_table, show_latency
from tvmbridge.version import __version__

if TYPE_CHECKING:
    from tvmbridge.bundle import VariantEntry
    from tvmbridge.bundle.gpu_code import GpuFacts
    from tvmbridge.host import Tool
    from tvmbridge.targets import Target


@click.command("inspect")
@click.argument("bundle", type=click.Path())
@json_option
def inspect_command(bundle: str, as_json: bool) -> int:
    """Show what BUNDLE says of itself; nothing of it is run.

    \b
    tvmbridge inspect model.tvmb
    """
    import msgspec

    from tvmbridge.bundle import open_bundle
    from tvmbridge.bundle.signing import signatures_of

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        signers = [signature.key for signature in signatures_of(opened)]
    if as_json:
        print_json({**msgspec.to_builtins(manifest), "signers": signers})
        return 0
    click.echo(f"model {manifest.model.name}, op-set {manifest.model.opset}, sha256 {manifest.model.sha256}")
    click.echo(f"written by {manifest.created_by}; tuning log {'inside' if manifest.log else 'none'}")
    for key in signers:
        click.echo(f"signed by key {key}, says the file: verify-signature checks it")
    for what, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for spec in specs:
            click.echo(f"{what}  {spec}")
    for value in manifest.model.bound:
        click.echo(f"bound  {value.name}: {value.dtype}{list(value.shape)}")
    rows = []
    for variant in manifest.variants:
        accuracy = variant.accuracy
        rows.append(
            [
                variant.name,
                _hardware(variant, variant.cpu),
                str(variant.cores),
                f"{variant.tuned_kernels} of {variant.kernels}",
                f"{accuracy.max_relative:.1e} relative" if accuracy else "not run there",
                show_latency(variant.latency_us, variant.emulated),
                f"{sum(weight.size_bytes for weight in variant.weights) / 1e6:.1f} MB",
                variant.requires.glibc or "–",
            ]
        )
    columns = ["variant", "hardware", "cores", "kernels tuned", "verified", "latency", "weights", "glibc"]
    print_table(columns, rows)
    for variant in manifest.variants:
        if variant.gpu is not None:
            click.echo(f"{variant.name}: {_show_gpu(variant.gpu)}")
    return 0


def _show_gpu(facts: GpuFacts) -> str:
    if facts.max_registers is None:
        return f"compiled by {facts.toolkit}"
    spills = "some kernels spill registers" if facts.spills else "no kernel spills registers"
    return f"compiled by {facts.toolkit}; at most {facts.max_registers} registers a thread, {spills}"


@click.command("check")
@click.argument("bundle", type=click.Path())
@device_option
@json_option
def check_command(bundle: str, device: str | None, as_json: bool) -> int:
    """Say which variants of BUNDLE run on this machine, and how well. Reads the manifest only.

    Exit code 1 when none does.

    \b
    tvmbridge check model.tvmb
    tvmbridge check model.tvmb --device cuda:1
    """
    from tvmbridge.runtime import check_bundle

    verdicts = check_bundle(bundle, device=device)
    runs = any(verdict.level != "unsupported" for verdict in verdicts)
    if as_json:
        print_json({"runs": runs, "variants": [dataclasses.asdict(verdict) for verdict in verdicts]})
    else:
        print_table(["variant", "here", "because"], [[v.variant, v.level, v.reason] for v in verdicts])
    return 0 if runs else 1


@click.command("targets")
@target_options
@json_option
def targets_command(targets_file: str | None, names: tuple[str, ...], as_json: bool) -> int:
    """List the targets that a build would take, with what each preset means here.

    \b
    tvmbridge targets
    tvmbridge targets --target arm:cortex-a72 --target cuda:sm_90
    """
    import msgspec

    targets = resolve_targets(targets_file, names)
    if as_json:
        print_json([msgspec.to_builtins(target) for target in targets])
        return 0
    rows = [
        [
            target.name,
            _hardware(target),
            " ".join([target.cpu, *target.features]),
            str(target.cores),
            _show_measure(target),
            str(target.budget) if target.budget is not None else "–",
        ]
        for target in targets
    ]
    print_table(["target", "kind", "cpu", "cores", "measured", "budget"], rows)
    return 0


def _show_measure(target: Target) -> str:
    where = target.measure if isinstance(target.measure, str) else f"rpc {target.measure.key}"
    return f"{where}, emulated" if target.emulated else where


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """Say what this machine is and which tools it has.

    Exit code 1 when a package or every linker is missing.

    \b
    tvmbridge doctor
    """
    from tvmbridge.host import detect_host, find_tools

    host, tools, packages = detect_host(gpus=True), find_tools(), _packages()
    missing = [name for name, version in packages.items() if version is None]
    linkers = [tool.name for tool in tools if tool.path is not None and tool.name != "nvcc"]
    broken = bool(missing) or not linkers
    if as_json:
        print_json(
            {
                "host": {**dataclasses.asdict(host), "cpu_features": sorted(host.cpu_features)},
                "tools": [_describe_tool(tool) for tool in tools],
                "packages": packages,
            }
        )
        return 1 if broken else 0
    emulated = ", emulated" if host.emulated else ""
    click.echo(f"{host.machine}{emulated}, {host.cpu_model}, {host.cores} cores, glibc {host.glibc or '–'}")
    click.echo(f"GPU: {', '.join(f'{gpu.name} ({gpu.architecture})' for gpu in host.gpus) or host.no_gpu_because}")
    print_table(["package", "version"], [[name, version or "MISSING"] for name, version in packages.items()])
    rows = []
    for tool in tools:
        here = f"{tool.version or ''} {tool.path}".strip() if tool.path else f"missing: {tool.install_hint}"
        rows.append([tool.name, here, tool.needed_for])
    print_table(["tool", "here", "needed for"], rows)
    return 1 if broken else 0


def _hardware(made_for: Target | VariantEntry, *cpu: str) -> str:
    """What code is for, in one line; what a target is where it says nothing goes without saying."""
    parts = [made_for.kind, *cpu, *made_for.architectures]
    parts += [made_for.precision] if made_for.precision != "float32" else []
    return " ".join([*parts, *(["graphs"] if made_for.cuda_graphs else [])])


def _describe_tool(tool: Tool) -> dict[str, Any]:
    return {**dataclasses.asdict(tool), "path": str(tool.path) if tool.path is not None else None}


def _packages() -> dict[str, str | None]:
    """What pyproject.toml declares for this machine, and the version of it that is installed; None where it is not."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in metadata.requires("tvmbridge") or ()]
    except metadata.PackageNotFoundError:  # a checkout that is on the path but was never installed
        declared = [Requirement(name) for name in ("apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "onnxruntime")]
    versions: dict[str, str | None] = {"tvmbridge": __version__}
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                versions[requirement.name] = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                versions[requirement.name] = None
    return versions
