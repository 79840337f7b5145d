"""`tvmbridge verify --bisect`: how the search for the first wrong operator is asked for and shown."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tvmbridge.cli.gates import Case
from tvmbridge.cli.options import resolve_targets
from tvmbridge.errors import LogError, NoVariantError, TargetError
from tvmbridge.host import detect_host
from tvmbridge.targets import Target, why_not_local

if TYPE_CHECKING:
    from tvmbridge.bisect import Check, Finding
    from tvmbridge.bisect.bisect import BisectReport
    from tvmbridge.bisect.cut import Part
    from tvmbridge.bundle import VariantEntry


def local_target(target: str | None, targets_file: str | None) -> Target:
    """The target to build for, this machine where none is named; TargetError where it cannot run here."""
    (chosen,) = resolve_targets(targets_file, (target or "native",))
    if obstacle := why_not_local(chosen, detect_host(gpus=chosen.kind == "cuda")):
        raise TargetError(f"{chosen.name} cannot be run here: {obstacle}", hint="search where it runs")
    return chosen


def bisect_and_write(
    model: str,
    target: Target,
    output: str | None,
    *,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> tuple[BisectReport, Path | None]:
    """Search, and write the reproduction: what was found, and the folder, None where nothing was found."""
    if log is not None and not log.exists():
        raise LogError(f"{log}: no such file", hint="tvmbridge tune makes one; without --log nothing is tuned")
    from tvmbridge.bisect import bisect_model
    from tvmbridge.bisect.reproduction import INPUTS, MODEL, require_folder, write_reproduction

    folder = Path(output) if output is not None else Path(f"{Path(model).stem}-reproduction")
    require_folder(folder)

    def on_check(part: Part, check: Check) -> None:
        if not quiet:
            click.echo(_say_check(part, check), err=True)

    report = bisect_model(model, target, log=log, on_check=on_check, **options)
    if report.finding is None:
        return report, None
    again = ["tvmbridge", "verify", "--bisect", str(folder / MODEL), "-i", str(folder / INPUTS)]
    write_reproduction(report.finding, folder, shlex.join(again))
    return report, folder


def target_of_variant(entry: VariantEntry, records: bytes | None) -> Target:
    """What a bundle's variant was built for. records: its tuning records, which know the hardware."""
    target = Target(
        name=entry.name,
        kind=entry.kind,
        triple=entry.triple,
        cpu=entry.cpu,
        features=entry.features,
        cores=entry.cores,
        architectures=entry.architectures,
        precision=entry.precision,
        cuda_graphs=entry.cuda_graphs,
    )
    if records is None:
        return target
    from tvmbridge.tuning.log import parse_log

    start = f"{target.key} hardware="
    keys = [record.target for record in parse_log(records, "the bundle") if record.target.startswith(start)]
    return msgspec.structs.replace(target, hardware=json.loads(keys[0].removeprefix(start))) if keys else target


def bisect_bundle(
    bundle: str, variant: str, model: str, folder: Path, output: str | None, *, quiet: bool, **options: Any
) -> tuple[BisectReport, Path | None]:
    """Build the model again as a bundle's variant was, and search. folder: for the bundle's tuning records."""
    from tvmbridge.bundle import open_bundle

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        entry = next((entry for entry in manifest.variants if entry.name == variant), None)
        if entry is None:
            raise NoVariantError(f"{bundle} has no variant {variant!r}")
        records = opened.read_member(manifest.log) if manifest.log is not None else None
    log = None
    if records is not None:
        log = folder / "bundle.tune.jsonl"
        log.write_bytes(records)
    shapes = {spec.name: tuple(axis or 0 for axis in spec.shape) for spec in manifest.signature.inputs}
    target = target_of_variant(entry, records)
    return bisect_and_write(model, target, output, quiet=quiet, log=log, shapes=shapes, **options)


def case_of(report: BisectReport, target: str) -> Case:
    """The search as a check of JUnit's."""
    from tvmbridge.bisect.reproduction import describe

    failure = describe(report.finding) if report.finding is not None else None
    return Case(f"operators of {target}", failure=failure)


def print_finding(report: BisectReport, folder: Path | None) -> None:
    """The finding for people."""
    from tvmbridge.bisect.reproduction import INPUTS, MODEL, describe

    if report.finding is None or folder is None:
        click.echo("a fresh build of the model is right: its outputs are ONNX Runtime's, within tolerance")
        return
    click.echo(describe(report.finding))
    click.echo(f"wrote {folder}: tvmbridge verify --bisect {folder / MODEL} -i {folder / INPUTS}")


def describe_report(report: BisectReport, folder: Path | None) -> dict[str, Any]:
    """The search for --json."""
    return {
        "whole": _describe_check(report.whole),
        "finding": _describe_finding(report.finding) if report.finding is not None else None,
        "reproduction": str(folder) if folder is not None else None,
    }


def _describe_finding(finding: Finding) -> dict[str, Any]:
    from tvmbridge.frontend.walk import opset

    nodes = [
        {
            "name": node.name,
            "op_type": node.op_type,
            "domain": node.domain,
            "opset": opset(finding.part.model, node.domain),
            "inputs": list(node.input),
            "outputs": list(node.output),
        }
        for node in finding.part.nodes
    ]
    inputs = [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in finding.inputs]
    check = _describe_check(finding.check)
    return {"kind": finding.kind, "nodes": nodes, "inputs": inputs, "tensors": list(finding.tensors), **check}


def _describe_check(check: Check) -> dict[str, Any]:
    outputs = []
    for output in check.outputs:
        known = output.mismatch is None and output.max_relative != float("inf")  # JSON has no infinity
        outputs.append(
            {
                "name": output.name,
                "max_relative": output.max_relative if known else None,
                "max_absolute": output.max_absolute if known else None,
                "cosine": output.cosine if known else None,
                "mismatch": output.mismatch,
            }
        )
    return {"status": check.status, "problem": check.problem, "outputs": outputs}


def _say_check(part: Part, check: Check) -> str:
    from tvmbridge.frontend.walk import label

    first, last = part.nodes[0], part.nodes[-1]
    ends = f"{first.op_type} {label(first)!r}" if len(part.nodes) == 1 else f"{label(first)!r} to {label(last)!r}"
    count = f"{len(part.nodes)} node{'s' if len(part.nodes) > 1 else ''}"
    return f"{count}, {ends}: {check.status}{f' ({check.problem})' if check.problem else ''}"
