"""Who made a bundle: ed25519 signatures of its manifest, which holds the digest of everything else in the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tvmbridge.bundle.reader import Bundle, open_bundle
from tvmbridge.bundle.writer import rewrite_bundle
from tvmbridge.errors import OutputError, SignatureError, reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Key = str | os.PathLike[str] | bytes

FORMAT = "tvmbridge-signature"
VERSION = 1
MAX_SIGNATURES = 100
_CONTEXT = b"tvmbridge bundle manifest, version 1\n"  # so that a signature of something else is none of a bundle
_MAKE_KEY = "tvmbridge keygen makes one"
_NO_PACKAGE = "pip install 'tvmbridge[sign]'"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature. key: SHA-256 of the 32 bytes of the public key. value: the 64 bytes; both in hexadecimal."""

    key: str
    value: str


class SignatureFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `signature.json`."""

    format: str
    version: int
    signatures: tuple[Signature, ...]


def render_signatures(signatures: Sequence[Signature]) -> bytes:
    """`signature.json` with these signatures, in the order of their keys."""
    file = SignatureFile(FORMAT, VERSION, tuple(sorted(signatures, key=lambda signature: signature.key)))
    return msgspec.json.format(msgspec.json.encode(file, order="sorted"), indent=2) + b"\n"


def parse_signatures(data: bytes, source: str) -> tuple[Signature, ...]:
    """The signatures in a `signature.json`; raises SignatureError. source: the bundle's path, for the messages."""
    try:
        file = msgspec.json.decode(data, type=SignatureFile)
        for signature in file.signatures:
            if len(bytes.fromhex(signature.key)) != 32 or len(bytes.fromhex(signature.value)) != 64:
                raise ValueError("a key has 32 bytes and a signature 64")
    except (ValueError, RecursionError) as exc:  # msgspec's errors are ValueErrors
        raise SignatureError(f"{source}: signature.json is malformed: {exc}") from exc
    if file.format != FORMAT or file.version != VERSION or len(file.signatures) > MAX_SIGNATURES:
        raise SignatureError(f"{source}: signature.json is of a kind that this tvmbridge does not know")
    return file.signatures


def key_id(public: Ed25519PublicKey) -> str:
    """What a signature names its key by."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def sign_bundle(
    path: str | os.PathLike[str],
    key: Key,
    *,
    passphrase: bytes | None = None,
    output: str | os.PathLike[str] | None = None,
) -> str:
    """Add a signature to a bundle, in place of an earlier one by the same key; return the id of the key.

    key: the private key: a PEM file, or its bytes. output: where the signed bundle goes; None: over the old one, in one
    step. Every digest in the bundle is checked first: nothing damaged is signed.
    Raises ArtifactError children, SignatureError for a key that cannot be used, OutputError.
    """
    private = _read_private(key, passphrase)
    own = key_id(private.public_key())
    with open_bundle(path) as bundle:
        if bundle.manifest.version < 2:
            raise SignatureError(
                f"{path}: version {bundle.manifest.version} of the format has no signatures", hint="build it again"
            )
        bundle.check_members()
        others = [signature for signature in signatures_of(bundle) if signature.key != own]
        if len(others) >= MAX_SIGNATURES:
            raise SignatureError(f"{path}: has {len(others)} signatures, and no room for another")
        made = Signature(own, private.sign(_CONTEXT + bundle.manifest_bytes).hex())
        rewrite_bundle(bundle, Path(output or path), render_signatures([*others, made]))
    return own


def verify_signature(bundle: Bundle, keys: Key | Sequence[Key]) -> str:
    """The id of the first of these public keys that has signed the bundle's manifest; raises SignatureError.

    keys: PEM files, or their bytes. What the manifest promises of the members is checked when they are read.
    """
    publics = [_read_public(key) for key in ([keys] if isinstance(keys, str | bytes | os.PathLike) else keys)]
    signatures = {signature.key: signature for signature in signatures_of(bundle)}
    for public in publics:
        signature = signatures.get(key_id(public))
        if signature is not None:
            _verify(public, signature, bundle)
            return signature.key
    wanted = ", ".join(key_id(public)[:16] for public in publics) or "none"
    if not signatures:
        raise SignatureError(f"{bundle.path}: is not signed; wanted: a signature by key {wanted}")
    found = ", ".join(name[:16] for name in signatures)
    raise SignatureError(f"{bundle.path}: is signed by key {found}, not by {wanted}", hint="whose bundle is this?")


def make_key(path: str | os.PathLike[str]) -> str:
    """Write a new private key to `path` (mode 0600) and its public half to `path`.pub; return the key's id.

    Both as PEM, the private one without a passphrase: `openssl pkey -aes256` adds one. Raises OutputError; never
    replaces a file.
    """
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    files = ((Path(path), secret, 0o600), (Path(f"{os.fspath(path)}.pub"), public, 0o666))
    try:
        _write_new_files(files)
    except FileExistsError as exc:
        raise OutputError(
            f"{exc.filename} is there already", hint="a key is never replaced: give another name"
        ) from exc
    except OSError as exc:
        raise OutputError(f"cannot write {exc.filename or path}: {exc.strerror or exc}") from exc
    return key_id(private.public_key())


def _write_new_files(files: Sequence[tuple[Path, bytes, int]]) -> None:
    """Write all of them, or none; each is path, content and mode. Raises OSError, also where one is there already."""
    made: list[Path] = []
    try:
        for file, data, mode in files:
            # Exclusive: where two make the same key at once, one of them fails.
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            made.append(file)
            with open(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(descriptor)
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise


def _verify(public: Ed25519PublicKey, signature: Signature, bundle: Bundle) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(bytes.fromhex(signature.value), _CONTEXT + bundle.manifest_bytes)
    except InvalidSignature as exc:
        raise SignatureError(
            f"{bundle.path}: the signature by key {signature.key[:16]} is not one of this manifest",
            hint="the bundle was changed after it was signed: get it again from where it was signed",
        ) from exc


def signatures_of(bundle: Bundle) -> tuple[Signature, ...]:
    """What the bundle's `signature.json` holds, not verified; nothing where it is not signed. Raises SignatureError."""
    return parse_signatures(bundle.signature_bytes, str(bundle.path)) if bundle.signature_bytes is not None else ()


def _read_private(key: Key, passphrase: bytes | None) -> Ed25519PrivateKey:
    _require_package()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, name = _read_pem(key)
    try:
        private = load_pem_private_key(data, passphrase)
    except Exception as exc:  # one of three kinds, by what is wrong with the file
        raise SignatureError(f"{name}: no usable private key: {reason(exc)}", hint=_MAKE_KEY) from exc
    if not isinstance(private, Ed25519PrivateKey):
        raise SignatureError(f"{name}: not an ed25519 key", hint=_MAKE_KEY)
    return private


def _read_public(key: Key) -> Ed25519PublicKey:
    _require_package()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data, name = _read_pem(key)
    try:
        public = load_pem_public_key(data)
    except Exception as exc:  # one of three kinds, by what is wrong with the file
        hint = "this is the private one: give its .pub" if b"PRIVATE KEY" in data else _MAKE_KEY
        raise SignatureError(f"{name}: no usable public key: {reason(exc)}", hint=hint) from exc
    if not isinstance(public, Ed25519PublicKey):
        raise SignatureError(f"{name}: not an ed25519 key", hint=_MAKE_KEY)
    return public


def _read_pem(key: Key) -> tuple[bytes, str]:
    if isinstance(key, bytes):
        return key, "the key"
    try:
        return Path(key).read_bytes(), os.fspath(key)
    except OSError as exc:
        raise SignatureError(f"{os.fspath(key)}: the key cannot be read: {exc.strerror or exc}") from exc


def _require_package() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as exc:
        raise SignatureError("signatures need the package cryptography, which is missing", hint=_NO_PACKAGE) from exc
