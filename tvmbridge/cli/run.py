"""`tvmbridge run` and `verify`: using a bundle, and holding it against ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from tvmbridge.cli.gates import Case, junit_option, write_junit
from tvmbridge.cli.isolation import isolate_options
from tvmbridge.cli.options import json_option, refuse_replacing
from tvmbridge.cli.output import print_json, print_table, show_us
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    from tvmbridge.verify.variant import VariantCheck

_variant = click.option("--variant", help="Insist on this variant; default: the one that fits this machine best.")
_threads = click.option("--threads", type=click.IntRange(1), help="Threads a call may use, within the cores there are.")
_inputs = click.option("-i", "--inputs", type=click.Path(), help="An .npz with one array per input.")
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random data.")


@click.command("run")
@click.argument("bundle", type=click.Path())
@click.option("-i", "--inputs", required=True, type=click.Path(), help="An .npz with one array per input.")
@click.option("-o", "--output", type=click.Path(), help="The .npz to write, with one array per output.")
@_variant
@_threads
@json_option
def run_command(
    bundle: str, inputs: str, output: str | None, variant: str | None, threads: int | None, as_json: bool
) -> int:
    """Run BUNDLE once on the arrays of an .npz file.

    \b
    tvmbridge run model.tvmb -i in.npz -o out.npz
    """
    from tvmbridge.runtime import load
    from tvmbridge.verify.inputs import read_inputs, write_arrays

    if output is not None:
        refuse_replacing(output, bundle, inputs)
    with load(bundle, threads=threads, variant=variant) as session:
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
@click.argument("bundle", type=click.Path())
@click.argument("model", type=click.Path())
@_inputs
@click.option("--tolerance", type=click.FloatRange(0), help="Of the relative error; 1e-3, for float16 1e-2.")
@_variant
@_seed
@junit_option
@json_option
@isolate_options
def verify_command(
    bundle: str,
    model: str,
    inputs: str | None,
    tolerance: float | None,
    variant: str | None,
    seed: int,
    junit: str | None,
    as_json: bool,
) -> int:
    """Compare BUNDLE's variants with ONNX Runtime running MODEL, on random data and on that of an .npz file.

    Exit code 1 when a variant that runs here is out of tolerance, or none runs here.

    \b
    tvmbridge verify model.tvmb model.onnx -i real.npz --junit verify.xml
    """
    from tvmbridge.bundle import open_bundle
    from tvmbridge.verify.inputs import read_inputs
    from tvmbridge.verify.variant import check_variants

    if junit is not None:
        refuse_replacing(junit, bundle, model, inputs)
    with open_bundle(bundle) as opened:
        signature = opened.manifest.signature
    given = read_inputs(inputs, signature) if inputs is not None else None
    checks = check_variants(Path(bundle), Path(model), inputs=given, tolerance=tolerance, seed=seed, variant=variant)
    passed = any(check.accuracy for check in checks) and not any(check.problem for check in checks)
    if junit is not None:
        cases = [Case(f"outputs of {c.variant}", failure=c.problem, skipped=c.unverified_because) for c in checks]
        if not any(check.accuracy for check in checks):
            cases.append(Case("a variant runs here", failure="none of the bundle's variants does"))
        write_junit(junit, "tvmbridge verify", cases)
    if as_json:
        print_json({"passed": passed, "variants": [msgspec.to_builtins(check) for check in checks]})
    else:
        columns = ["variant", "max relative", "max absolute", "cosine", "within tolerance"]
        print_table(columns, [_check_row(check) for check in checks])
    return 0 if passed else 1


def _check_row(check: VariantCheck) -> list[str]:
    accuracy = check.accuracy
    if accuracy is None:
        return [check.variant, "–", "–", "–", check.problem or f"not run: {check.unverified_because}"]
    figures = [f"{accuracy.max_relative:.1e}", f"{accuracy.max_absolute:.1e}", f"{accuracy.cosine:.6f}"]
    return [check.variant, *figures, f"NO: {check.problem}" if check.problem else "yes"]
