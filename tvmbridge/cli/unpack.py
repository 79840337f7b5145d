"""`tvmbridge unpack` and `diff`: a variant as plain files, and what two bundles differ in."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from tvmbridge.cli.options import json_option
from tvmbridge.cli.output import print_json, print_table


@click.command("unpack")
@click.argument("bundle", type=click.Path())
@click.option("--variant", help="Which variant; default: the one that fits this machine best.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder to make.")
@json_option
def unpack_command(bundle: str, variant: str | None, output: str, as_json: bool) -> int:
    """Write one variant of BUNDLE as plain files, for programs that do without tvmbridge; examples/cpp is one.

    \b
    tvmbridge unpack model.tvmb -o model/
    tvmbridge unpack model.tvmb --variant arm-cortex-a72 -o board/
    """
    from tvmbridge.bundle import open_bundle
    from tvmbridge.bundle.unpack import unpack_variant
    from tvmbridge.errors import NoVariantError
    from tvmbridge.runtime.choose import choose_variant, detect_host_for, detect_software

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
        if variant is None:
            chosen = choose_variant(manifest, detect_host_for(manifest), detect_software())
        else:
            named = {entry.name: entry for entry in manifest.variants}
            if variant not in named:
                raise NoVariantError(f"{bundle} has no variant {variant!r}", hint=f"it has: {', '.join(named)}")
            chosen = named[variant]
        unpack_variant(opened, chosen, output)
    if as_json:
        print_json({"variant": chosen.name, "output": output})
    else:
        click.echo(f"wrote variant {chosen.name} to {output}")
    return 0


@click.command("diff")
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--exit-code", "as_exit_code", is_flag=True, help="Exit with 1 where they differ.")
@json_option
def diff_command(old: str, new: str, as_exit_code: bool, as_json: bool) -> int:
    """Say what the bundles OLD and NEW differ in: model, inputs and outputs, and each variant's facts and content.

    \b
    tvmbridge diff deployed.tvmb candidate.tvmb
    """
    from tvmbridge.bundle import open_bundle
    from tvmbridge.bundle.difference import find_differences

    with open_bundle(old) as before, open_bundle(new) as after:
        differences = find_differences(before.manifest, after.manifest)
    if as_json:
        print_json({"equal": not differences, "differences": [dataclasses.asdict(each) for each in differences]})
    elif differences:
        print_table(["what", "old", "new"], [[each.what, _show(each.old), _show(each.new)] for each in differences])
    else:
        click.echo("no difference")
    return 1 if differences and as_exit_code else 0


def _show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_show, value)) or "none"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
