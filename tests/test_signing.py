"""Signatures: by the right key over an unchanged bundle, or refused with the reason."""

from __future__ import annotations

import json
import stat
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_bundle import draw_weights, make_variant, rewrite_manifest, write
from tvmbridge.bundle import make_key, open_bundle, sign_bundle, verify_signature
from tvmbridge.bundle.archive import parse_archive, plan_archive
from tvmbridge.bundle.manifest import MAX_MEMBERS
from tvmbridge.bundle.signing import Signature, parse_signatures, render_signatures
from tvmbridge.errors import BundleFormatError, DigestError, OutputError, SignatureError


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write(tmp_path / "model.tvmb", make_variant(tmp_path, "native", draw_weights()))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def public(key: Path) -> str:
    return f"{key}.pub"


def verify(path: Path, *keys: str | bytes) -> str:
    with open_bundle(path) as bundle:
        return verify_signature(bundle, keys)


def test_a_signed_bundle_is_the_same_bundle_with_a_signature(bundle_path, key, tmp_path):
    signed = tmp_path / "signed.tvmb"
    identifier = sign_bundle(bundle_path, key, output=signed)
    assert verify(signed, public(key)) == identifier
    assert verify(signed, Path(public(key)).read_bytes()) == identifier
    with open_bundle(bundle_path) as old, open_bundle(signed) as new:
        assert (new.manifest_bytes, old.signature_bytes) == (old.manifest_bytes, None)
        new.check_members()
        variant = new.manifest.variants[0]
        for ours, theirs in zip(new.map_weights(variant), old.map_weights(variant), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with zipfile.ZipFile(signed) as archive:
        assert archive.testzip() is None and archive.namelist()[-1] == "signature.json"


def test_signing_in_place_again_gives_the_same_bytes_and_another_key_adds_its_own(bundle_path, key, tmp_path):
    make_key(tmp_path / "other.pem")
    first = sign_bundle(bundle_path, key)
    once = bundle_path.read_bytes()
    sign_bundle(bundle_path, key)
    assert bundle_path.read_bytes() == once
    second = sign_bundle(bundle_path, tmp_path / "other.pem")
    assert verify(bundle_path, public(key)) == first
    assert verify(bundle_path, f"{tmp_path / 'other.pem'}.pub") == second
    assert first != second


def test_an_unsigned_bundle_and_one_by_another_key_are_refused(bundle_path, key, tmp_path):
    with pytest.raises(SignatureError, match="is not signed"):
        verify(bundle_path, public(key))
    make_key(tmp_path / "other.pem")
    sign_bundle(bundle_path, tmp_path / "other.pem")
    with pytest.raises(SignatureError, match="not by"):
        verify(bundle_path, public(key))
    assert verify(bundle_path, public(key), f"{tmp_path / 'other.pem'}.pub")  # one of several will do
    with pytest.raises(SignatureError, match="by none"):
        verify(bundle_path)


def test_a_manifest_changed_after_signing_is_refused(bundle_path, key, tmp_path):
    sign_bundle(bundle_path, key)
    changed = rewrite_manifest(bundle_path, lambda manifest: manifest["model"].update(name="another"))
    with pytest.raises(SignatureError, match="not one of this manifest"):
        verify(changed, public(key))


def test_a_damaged_bundle_is_not_signed(bundle_path, key):
    data = bytearray(bundle_path.read_bytes())
    at = data.index(b"\x7fELFnative")
    data[at + 10] ^= 1
    bundle_path.write_bytes(data)
    with pytest.raises(DigestError):
        sign_bundle(bundle_path, key)
    assert bundle_path.read_bytes() == data


def test_the_key_files_are_private_and_public_and_never_replaced(tmp_path):
    identifier = make_key(tmp_path / "key.pem")
    assert len(identifier) == 64
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    secret = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(OutputError, match="there already"):
        make_key(tmp_path / "key.pem")
    (tmp_path / "key.pem").rename(tmp_path / "kept")
    with pytest.raises(OutputError, match="there already"):  # its .pub is still there
        make_key(tmp_path / "key.pem")
    assert (tmp_path / "kept").read_bytes() == secret and not (tmp_path / "key.pem").exists()


def test_a_key_whose_public_half_cannot_be_written_is_not_left_behind(tmp_path):
    (tmp_path / "key.pem.pub").symlink_to(tmp_path / "none")
    with pytest.raises(OutputError, match=r"key\.pem\.pub is there already"):
        make_key(tmp_path / "key.pem")
    assert not (tmp_path / "key.pem").exists() and not (tmp_path / "none").exists()


def test_who_may_read_a_bundle_stays_who_may_read_the_signed_one(bundle_path, key, tmp_path):
    bundle_path.chmod(0o640)
    sign_bundle(bundle_path, key, output=tmp_path / "signed.tvmb")
    bundle_path.chmod(0o600)
    sign_bundle(bundle_path, key)
    assert stat.S_IMODE((tmp_path / "signed.tvmb").stat().st_mode) == 0o640
    assert stat.S_IMODE(bundle_path.stat().st_mode) == 0o600


def test_the_fullest_bundle_still_has_room_for_its_signatures():
    names = ["manifest.json", *(f"attachments/{index:05}" for index in range(MAX_MEMBERS)), "signature.json"]
    planned, ending = plan_archive((name, 0, 0) for name in names)
    data = b"".join(member.header for member in planned) + ending
    found = parse_archive(lambda offset, count: data[offset : offset + count], len(data), "m")
    assert [member.name for member in found] == names


def test_a_key_with_a_passphrase_wants_it(bundle_path, key, tmp_path):
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    with pytest.raises(SignatureError, match="no usable private key"):
        sign_bundle(bundle_path, locked)
    with pytest.raises(SignatureError, match="no usable private key"):
        sign_bundle(bundle_path, locked, passphrase=b"wrong")
    sign_bundle(bundle_path, locked, passphrase=b"open sesame")
    assert verify(bundle_path, public(key))


def test_files_that_are_no_keys_of_this_kind_are_refused_by_name(bundle_path, key, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    secret = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    open_half = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(SignatureError, match="not an ed25519 key"):
        sign_bundle(bundle_path, secret)
    sign_bundle(bundle_path, key)
    with pytest.raises(SignatureError, match="not an ed25519 key"):
        verify(bundle_path, open_half)
    with pytest.raises(SignatureError, match="cannot be read"):
        verify(bundle_path, str(tmp_path / "none.pub"))
    with pytest.raises(SignatureError, match="no usable public key") as caught:
        verify(bundle_path, str(key))
    assert ".pub" in caught.value.hint


def test_a_bundle_of_version_1_has_no_place_for_a_signature(key, tmp_path):
    old = tmp_path / "old.tvmb"
    old.write_bytes((Path(__file__).parent / "golden" / "bundle-v1.tvmb").read_bytes())
    with pytest.raises(SignatureError, match="build it again"):
        sign_bundle(old, key)
    with pytest.raises(SignatureError, match="is not signed"):
        verify(old, public(key))


def test_signature_json_in_a_bundle_of_version_1_is_an_unknown_member(bundle_path, key):
    sign_bundle(bundle_path, key)
    changed = rewrite_manifest(bundle_path, lambda manifest: manifest.update(version=1))
    with pytest.raises(BundleFormatError, match=r"signature\.json is not in the manifest"):
        open_bundle(changed)


@given(
    st.lists(
        st.builds(Signature, st.binary(min_size=32, max_size=32).map(bytes.hex), st.just("ab" * 64)),
        unique_by=lambda signature: signature.key,
        max_size=5,
    )
)
def test_signatures_are_parsed_as_they_were_rendered(signatures):
    data = render_signatures(signatures)
    assert parse_signatures(data, "m") == tuple(sorted(signatures, key=lambda signature: signature.key))
    assert render_signatures(list(reversed(signatures))) == data


WHOLE = json.loads(render_signatures([Signature("ab" * 32, "cd" * 64)]))


@given(
    st.binary(max_size=60)
    | st.sampled_from(
        [
            {**WHOLE, "version": 2},
            {**WHOLE, "format": "other"},
            {**WHOLE, "more": 1},
            {**WHOLE, "signatures": [{"key": "zz" * 32, "value": "cd" * 64}]},
            {**WHOLE, "signatures": [{"key": "ab", "value": "cd" * 64}]},
            {**WHOLE, "signatures": WHOLE["signatures"] * 101},
        ]
    ).map(msgspec.json.encode)
    | st.just(b"[" * 50_000)
)
def test_anything_else_is_refused(data):
    with pytest.raises(SignatureError):
        parse_signatures(data, "m")


def test_without_the_package_a_required_signature_is_refused_not_skipped(bundle_path, key, monkeypatch):
    sign_bundle(bundle_path, key)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SignatureError, match="cryptography") as caught:
        verify(bundle_path, public(key))
    assert "pip install" in caught.value.hint
