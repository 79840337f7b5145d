"""Damaged bundles: each opens with the same content or is refused with an ArtifactError, and no file is left behind."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvmbridge.bundle import BuiltVariant, ModelFacts, Requires, open_bundle, write_bundle
from tvmbridge.bundle.archive import parse_archive
from tvmbridge.bundle.manifest import Manifest, parse_manifest, render_manifest
from tvmbridge.errors import ArtifactError, BundleFormatError
from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.targets import Target


@cache
def whole_bundle() -> tuple[bytes, object]:
    """The bytes of a small bundle, and its content."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.so").write_bytes(b"\x7fELF model")
        variant = BuiltVariant(
            target=Target(
                name="native", kind="x86", triple="x86_64-linux-gnu", cpu="x86-64-v3", features=("+avx2",), cores=2
            ),
            library=folder / "model.so",
            weights=(np.arange(7, dtype="float32"), np.arange(20_000, dtype="int32")),
            requires=Requires("x86_64", ("avx2",)),
            tvm="0.27.0.post1",
            tvm_ffi="0.1.14.post1",
            runtime_libraries=(folder / "model.so",),
            kernels=1,
            tuned_kernels=0,
        )
        signature = ModelSignature((TensorSpec("x", (1,), "float32"),), (TensorSpec("y", (1,), "float32"),))
        path = folder / "m.tvmb"
        write_bundle(path, model=ModelFacts("m", "0" * 64, 17), signature=signature, variants=[variant], log=b"{}\n")
        return path.read_bytes(), read_content(path)


def read_content(path: Path) -> object:
    with open_bundle(path) as bundle:
        members = {name: bundle.read_member(name) for name in bundle.manifest.members}
        weights = [weight.tolist() for variant in bundle.manifest.variants for weight in bundle.map_weights(variant)]
        return bundle.manifest, members, weights


@st.composite
def damaged_bytes(draw) -> bytes:
    data = bytearray(whole_bundle()[0])
    # Most bytes are weights and padding: half of the damage goes to the headers and the directory at the two ends.
    place = st.integers(0, len(data) - 1) | st.integers(0, 4000) | st.integers(len(data) - 700, len(data) - 1)
    for _ in range(draw(st.integers(1, 3))):
        at, other = min(draw(place), len(data)), min(draw(place), len(data))
        kind = draw(st.sampled_from(["set", "flip", "word", "cut", "insert", "delete", "copy"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "word":
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"PK\x05\x06"]))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=80))
        elif kind == "delete":
            del data[min(at, other) : min(at, other) + draw(st.integers(1, 200))]
        else:
            data[at : at + 60] = data[other : other + 60]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged_bytes())
def test_a_damaged_bundle_has_the_same_content_or_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tvmb"
        path.write_bytes(data)
        try:
            content = read_content(path)
        except ArtifactError as error:
            assert str(path) in error.message
        else:
            assert content == whole_bundle()[1]
        assert os.listdir(folder) == ["m.tvmb"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_no_archive(data):
    try:
        members = parse_archive(lambda offset, count: data[max(offset, 0) :][:count], len(data), "m")
    except BundleFormatError:
        members = ()
    assert members == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_manifests(draw) -> bytes:
    """A good manifest in which some value, at any depth, is another."""
    root = json.loads(render_manifest(whole_bundle()[1][0]))
    node = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and draw(st.booleans()):
            node = node[key]
            continue
        node[key] = draw(JSON)
        break
    return json.dumps(root).encode()


@settings(max_examples=300, deadline=None)
@given(damaged_manifests() | st.binary(max_size=100) | st.just(b"[" * 100_000))
def test_a_damaged_manifest_is_a_manifest_or_is_refused(data):
    try:
        manifest = parse_manifest(data, "m.tvmb")
    except ArtifactError as error:
        assert error.message.startswith("m.tvmb: ")
    else:
        assert isinstance(manifest, Manifest) and manifest.variants
