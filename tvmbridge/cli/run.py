"""`tvmbridge run` and `verify`: using a bundle, and holding it against ONNX Runtime."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tvmbridge.cli.bisect import (
    bisect_and_write,
    bisect_bundle,
    case_of,
    describe_report,
    local_target,
    print_finding,
)
from tvmbridge.cli.gates import Case, junit_option, write_junit
from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import (
    binding_options,
    device_option,
    json_option,
    parse_bindings,
    refuse_replacing,
    resolve_rpc,
    rpc_option,
)
from tvmbridge.cli.output import print_json, print_table, show_us
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    from tvmbridge.bisect.bisect import BisectReport
    from tvmbridge.targets import RpcMeasure, Target
    from tvmbridge.verify.variant import VariantCheck

_variant = click.option("--variant", help="Insist on this variant; default: the one that fits this machine best.")
_threads = click.option("--threads", type=click.IntRange(1), help="Threads a call may use, within the cores there are.")
_inputs = click.option("-i", "--inputs", type=click.Path(), help="An .npz with one array per input.")
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random data.")
_OF_A_MODEL = {
    "shapes": "--shape",
    "dims": "--dim",
    "target": "--target",
    "targets_file": "--targets",
    "log": "--log",
}


@click.command("run")
@click.argument("bundle", type=click.Path())
@click.option("-i", "--inputs", required=True, type=click.Path(), help="An .npz with one array per input.")
@click.option("-o", "--output", type=click.Path(), help="The .npz to write, with one array per output.")
@_variant
@device_option
@_threads
@json_option
def run_command(
    bundle: str,
    inputs: str,
    output: str | None,
    variant: str | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Run BUNDLE once on the arrays of an .npz file.

    \b
    tvmbridge run model.tvmb -i in.npz -o out.npz
    tvmbridge run model.tvmb -i in.npz --device cuda:1
    """
    from tvmbridge.runtime import load
    from tvmbridge.verify.inputs import read_inputs, write_arrays

    if output is not None:
        refuse_replacing(output, bundle, inputs)
    with load(bundle, threads=threads, variant=variant, device=device) as session:
        feeds = read_inputs(inputs, ModelSignature(session.inputs, session.outputs))
        started = time.perf_counter()
        results = session.run(feeds)
        elapsed_us = (time.perf_counter() - started) * 1e6
        used = session.variant
    if output is not None:
        write_arrays(output, results)
    if as_json:
        described = [{"name": name, "shape": list(a.shape), "dtype": str(a.dtype)} for name, a in results.items()]
        print_json({"variant": used, "first_call_us": elapsed_us, "outputs": described, "output": output})
    else:
        rows = [[name, str(a.dtype), "×".join(map(str, a.shape)) or "scalar"] for name, a in results.items()]
        print_table(["output", "dtype", "shape"], rows)
        click.echo(f"variant {used}, first call {show_us(elapsed_us)}")
        if output is not None:
            click.echo(f"wrote {output}")
    return 0


@click.command("verify")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="[BUNDLE] MODEL")
@binding_options
@_inputs
@click.option("--tolerance", type=click.FloatRange(0), help="Of the relative error; 1e-3, for float16 1e-2.")
@_variant
@_seed
@rpc_option
@click.option("--bisect", is_flag=True, help="Find the first operator that differs, and write it as a model.")
@click.option("-o", "--output", type=click.Path(), help="With --bisect: the folder to write; MODEL-reproduction.")
@click.option("--target", metavar="NAME", help="With --bisect and no BUNDLE: a target or a preset; default: native.")
@click.option("--targets", "targets_file", type=click.Path(), help="With --target: the file that declares it.")
@click.option("--log", type=click.Path(path_type=Path), help="With --bisect and no BUNDLE: the tuning log to use.")
@junit_option
@json_option
@isolate_options
def verify_command(
    files: tuple[str, ...],
    inputs: str | None,
    tolerance: float | None,
    variant: str | None,
    seed: int,
    rpc: str | None,
    bisect: bool,
    output: str | None,
    junit: str | None,
    as_json: bool,
    values: tuple[str, ...],
    **of_a_model: Any,
) -> int:
    """Compare BUNDLE's variants with ONNX Runtime running MODEL, on random data and on that of an .npz file.

    With --rpc the variants run on a device (`tvmbridge device`), and ONNX Runtime here.

    With --bisect, what differs or does not compile is searched: the first operator (or the fewest) that is wrong
    on ONNX Runtime's own values is written as a small model with its inputs and the outputs that it should give.
    Without BUNDLE, MODEL is built for this machine first. Exit code 1 when a variant that runs here is out of
    tolerance, or none runs here.

    \b
    tvmbridge verify model.tvmb model.onnx -i real.npz --junit verify.xml
    tvmbridge verify model.tvmb model.onnx --rpc 127.0.0.1:9190/rpi4 --variant edge
    tvmbridge verify --bisect model.onnx --dim batch=1 -o reproduction
    """
    *bundles, model = files
    given = [_OF_A_MODEL[name] for name, value in of_a_model.items() if value]
    if len(bundles) > 1 or not (bundles or bisect):
        raise click.UsageError("give a bundle and the model that it was built from; or, with --bisect, a model alone")
    if output is not None and not bisect:
        raise click.UsageError("-o is the folder of a reproduction: it needs --bisect")
    if rpc is not None and bisect:
        raise click.UsageError("--bisect searches on this machine: leave --rpc out")
    place = resolve_rpc(rpc)
    if bundles and given:
        raise click.UsageError(f"{', '.join(given)}: a bundle is what it is; leave it out to build the model anew")
    if not bundles and variant is not None:
        raise click.UsageError("--variant: a model has none; name a --target")
    if junit is not None:
        refuse_replacing(junit, *files, inputs)
    bound = parse_bindings((), (), values)["values"]
    search = _Search(model, inputs, tolerance, seed, output, bound, quiet=as_json) if bisect else None
    if not bundles:
        assert search is not None
        return _bisect_model(search, junit, as_json, **of_a_model)
    return _verify_bundle(bundles[0], model, bound, inputs, tolerance, variant, seed, place, junit, as_json, search)


@dataclasses.dataclass(frozen=True)
class _Search:
    """What --bisect was asked for."""

    model: str
    inputs: str | None
    tolerance: float | None
    seed: int
    output: str | None
    values: Mapping[str, Any]
    quiet: bool

    def in_model(self, target: Target, **options: Any) -> tuple[BisectReport, Path | None]:
        """Build the model for a target and search it."""
        return bisect_and_write(self.model, target, self.output, quiet=self.quiet, **self._options(), **options)

    def in_bundle(self, bundle: str, variant: str) -> tuple[BisectReport, Path | None]:
        """Build the model as the variant was, and search it."""
        with tempfile.TemporaryDirectory(prefix="tvmbridge-verify-") as name:
            more = {"quiet": self.quiet, **self._options()}
            return bisect_bundle(bundle, variant, self.model, Path(name), self.output, **more)

    def _options(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "tolerance": self.tolerance, "seed": self.seed, "values": self.values}


def _bisect_model(
    search: _Search,
    junit: str | None,
    as_json: bool,
    *,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    target: str | None,
    targets_file: str | None,
    log: Path | None,
) -> int:
    chosen = local_target(target, targets_file)
    bindings = parse_bindings(shapes, dims)
    report, folder = search.in_model(chosen, log=log, shapes=bindings["shapes"], dims=bindings["dims"])
    if junit is not None:
        write_junit(junit, "tvmbridge verify", [case_of(report, chosen.name)])
    if as_json:
        print_json({"passed": report.finding is None, "variants": [], "bisect": describe_report(report, folder)})
    else:
        print_finding(report, folder)
    return 0 if report.finding is None else 1


def _verify_bundle(
    bundle: str,
    model: str,
    values: Mapping[str, Any],
    inputs: str | None,
    tolerance: float | None,
    variant: str | None,
    seed: int,
    place: RpcMeasure | None,
    junit: str | None,
    as_json: bool,
    search: _Search | None,
) -> int:
    from tvmbridge.bundle import open_bundle, read_values
    from tvmbridge.frontend.input_values import with_values
    from tvmbridge.verify.inputs import read_inputs
    from tvmbridge.verify.variant import check_variants

    with open_bundle(bundle) as opened:
        signature = opened.manifest.signature
        values = read_values(opened.manifest.model.bound, values, source=bundle)
    arrays = read_inputs(inputs, signature) if inputs is not None else None
    source = with_values(Path(model), values)
    checks = check_variants(
        Path(bundle), source, inputs=arrays, tolerance=tolerance, seed=seed, variant=variant, place=place
    )
    passed = any(check.accuracy for check in checks) and not any(check.problem for check in checks)
    if not as_json:
        columns = ["variant", "max relative", "max absolute", "cosine", "within tolerance"]
        print_table(columns, [_check_row(check) for check in checks])
    wrong = next((check.variant for check in checks if check.problem), None)
    found = None
    if search is not None and wrong is not None:
        found = dataclasses.replace(search, values=values).in_bundle(bundle, wrong)
    if junit is not None:
        cases = [Case(f"outputs of {c.variant}", failure=c.problem, skipped=c.unverified_because) for c in checks]
        if not any(check.accuracy for check in checks):
            cases.append(Case("a variant runs here", failure="none of the bundle's variants does"))
        cases += [case_of(found[0], wrong)] if found is not None and wrong is not None else []
        write_junit(junit, "tvmbridge verify", cases)
    if as_json:
        more = {"bisect": describe_report(*found) if found is not None else None} if search is not None else {}
        print_json({"passed": passed, "variants": [msgspec.to_builtins(check) for check in checks], **more})
    elif found is not None:
        print_finding(*found)
    return 0 if passed else 1


def _check_row(check: VariantCheck) -> list[str]:
    accuracy = check.accuracy
    if accuracy is None:
        return [check.variant, "–", "–", "–", check.problem or f"not run: {check.unverified_because}"]
    figures = [f"{accuracy.max_relative:.1e}", f"{accuracy.max_absolute:.1e}", f"{accuracy.cosine:.6f}"]
    return [check.variant, *figures, f"NO: {check.problem}" if check.problem else "yes"]
