"""`tvmbridge keygen`, `sign` and `verify-signature`: who made a bundle."""

from __future__ import annotations

import os

import click

from tvmbridge.cli.options import json_option, refuse_replacing
from tvmbridge.cli.output import print_json

PASSPHRASE = "TVMBRIDGE_KEY_PASSPHRASE"


@click.command("keygen")
@click.argument("key", type=click.Path())
@json_option
def keygen_command(key: str, as_json: bool) -> int:
    """Make an ed25519 key to sign bundles with: KEY, which is secret, and KEY.pub, which loaders are given.

    \b
    tvmbridge keygen release.pem
    openssl pkey -aes256 -in release.pem -out locked.pem    # with a passphrase
    """
    from tvmbridge.bundle import make_key

    identifier = make_key(key)
    if as_json:
        print_json({"key": identifier, "private": key, "public": f"{key}.pub"})
    else:
        click.echo(f"key {identifier}")
        click.echo(f"wrote {key} (keep it secret) and {key}.pub")
    return 0


@click.command("sign")
@click.argument("bundle", type=click.Path())
@click.option("--key", required=True, type=click.Path(), help="The private key, PEM.")
@click.option("-o", "--output", type=click.Path(), help="The signed bundle; default: it replaces BUNDLE, in one step.")
@json_option
def sign_command(bundle: str, key: str, output: str | None, as_json: bool) -> int:
    """Add a signature to BUNDLE, once everything in it was found undamaged.

    A passphrase of the key is read from the environment: TVMBRIDGE_KEY_PASSPHRASE.

    \b
    tvmbridge sign model.tvmb --key release.pem
    """
    from tvmbridge.bundle import sign_bundle

    if output is not None:
        refuse_replacing(output, key)
    passphrase = os.environ.get(PASSPHRASE)
    identifier = sign_bundle(bundle, key, passphrase=passphrase.encode() if passphrase else None, output=output)
    if as_json:
        print_json({"key": identifier, "output": output or bundle})
    else:
        click.echo(f"signed {output or bundle} with key {identifier}")
    return 0


@click.command("verify-signature")
@click.argument("bundle", type=click.Path())
@click.option("--key", "keys", required=True, multiple=True, type=click.Path(), help="A public key, PEM. Repeatable.")
@json_option
def verify_signature_command(bundle: str, keys: tuple[str, ...], as_json: bool) -> int:
    """Check that one of the keys has signed BUNDLE, and every digest in it. Nothing of it is run.

    Exit code 1 when it is not signed, by another key, or not as it was when it was signed.

    \b
    tvmbridge verify-signature model.tvmb --key release.pem.pub
    """
    from tvmbridge.bundle import open_bundle, verify_signature

    with open_bundle(bundle) as opened:
        identifier = verify_signature(opened, list(keys))
        opened.check_members()
        members = len(opened.manifest.members)
    if as_json:
        print_json({"key": identifier, "members": members})
    else:
        click.echo(f"{bundle}: signed by key {identifier}; {members} members are what was signed")
    return 0
