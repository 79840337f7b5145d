"""The bundle format: what is written is read again, equal inputs give equal bytes, what is wrong is refused by name."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.bundle import (
    Accuracy,
    BuiltVariant,
    ModelFacts,
    Requires,
    open_bundle,
    verify_signature,
    write_bundle,
)
from tvmbridge.bundle import archive as archive_module
from tvmbridge.bundle import manifest as manifest_module
from tvmbridge.bundle import signing as signing_module
from tvmbridge.bundle.archive import ALIGNMENT_BYTES, PAGE_ALIGNED_FROM_BYTES, PAGE_BYTES, parse_archive, plan_archive
from tvmbridge.bundle.gpu_code import GpuFacts
from tvmbridge.bundle.manifest import MAX_LIBRARY_BYTES, MAX_MANIFEST_BYTES, VERSION, parse_manifest, render_manifest
from tvmbridge.bundle.unpack import unpack_variant
from tvmbridge.errors import ArtifactError, BundleFormatError, DigestError, NewerVersionError, OutputError
from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.targets import Target

MODEL = ModelFacts(name="digits", sha256="ab" * 32, opset=17)
SIGNATURE = ModelSignature(
    inputs=(TensorSpec("x", (1, 64), "float32"), TensorSpec("ids", (7,), "int64", 100)),
    outputs=(TensorSpec("y", (1, None), "float32"),),
)
ACCURACY = Accuracy(1e-6, 2e-6, 1.0, 1e-3, "onnxruntime 1.32.0", 4)


def make_variant(folder: Path, name: str, weights: tuple = (), **changes) -> BuiltVariant:
    library = folder / f"{name}.so"
    library.write_bytes(b"\x7fELF" + name.encode() * 50)
    runtime = folder / "libtvm_runtime.so"
    runtime.write_bytes(b"\x7fELF runtime")
    target = Target(name=name, kind="x86", triple="x86_64-linux-gnu", cpu="x86-64-v3", features=(), cores=2)
    facts = {"requires": Requires("x86_64", ("avx2",), (), "2.17"), "tvm": "0.27.0.post1", "tvm_ffi": "0.1.14.post1"}
    facts |= {"runtime_libraries": (runtime,), "kernels": 3, "tuned_kernels": 1}
    return BuiltVariant(target=target, library=library, weights=weights, **(facts | changes))


def write(path: Path, *variants: BuiltVariant, log: bytes | None = b'{"format": "log"}\n') -> Path:
    write_bundle(path, model=MODEL, signature=SIGNATURE, variants=variants, log=log)
    return path


@pytest.mark.parametrize("name", ["model.so", "variant.txt"])
def test_a_runtime_library_of_another_files_name_is_not_unpacked_over_it(name, tmp_path):
    (tmp_path / "runtime").mkdir()
    runtime = tmp_path / "runtime" / name
    runtime.write_bytes(b"\x7fELF")
    path = write(tmp_path / "m.tvmb", make_variant(tmp_path, "native", runtime_libraries=(runtime,)))
    with open_bundle(path) as bundle, pytest.raises(BundleFormatError, match="name of another file"):
        unpack_variant(bundle, bundle.manifest.variants[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def draw_weights() -> tuple:
    rng = np.random.default_rng(7)
    return (
        rng.normal(size=(31, 17)).astype("float32"),
        rng.normal(size=(300, 101)).astype("float16"),
        rng.integers(0, 2, size=13).astype(bool),
        np.array(3.5),
        np.zeros((0, 4), dtype="int64"),
    )


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    variant = make_variant(tmp_path, "native", draw_weights(), accuracy=ACCURACY, latency_us=12.5)
    return write(tmp_path / "model.tvmb", variant)


def rewrite_manifest(path: Path, change, *, rename=None) -> Path:
    """The bundle with a changed manifest and a right checksum, so that only the manifest can be to blame."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(contents["manifest.json"])
    change(manifest)
    contents["manifest.json"] = json.dumps(manifest).encode()
    contents = {(rename or {}).get(name, name): data for name, data in contents.items()}
    return write_archive(path, contents)


def write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    planned, ending = plan_archive((name, len(data), zlib.crc32(data)) for name, data in contents.items())
    path.write_bytes(b"".join(member.header + contents[member.name] for member in planned) + ending)
    return path


def patch(path: Path, offset: int, data: bytes) -> Path:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)
    return path


def find_central(path: Path, name: str) -> int:
    return path.read_bytes().rindex(name.encode()) - 46


def test_what_is_written_is_read_again(tmp_path, bundle_path):
    weights = draw_weights()
    with open_bundle(bundle_path) as bundle:
        manifest = bundle.manifest
        (variant,) = manifest.variants
        assert (manifest.model, manifest.signature, variant.accuracy) == (MODEL, SIGNATURE, ACCURACY)
        assert (variant.name, variant.requires.glibc, variant.latency_us) == ("native", "2.17", 12.5)
        assert bundle.read_member(variant.library) == (tmp_path / "native.so").read_bytes()
        assert [bundle.read_member(name) for name in variant.runtime_libraries] == [b"\x7fELF runtime"]
        assert bundle.read_member(manifest.log) == b'{"format": "log"}\n'
        mapped = bundle.map_weights(variant)
    for weight, again in zip(weights, mapped, strict=True):
        assert (again.dtype, again.shape) == (weight.dtype, weight.shape)
        np.testing.assert_array_equal(again, weight)


def test_mapped_weights_are_aligned_private_and_outlive_the_bundle(bundle_path):
    before = bundle_path.read_bytes()
    with open_bundle(bundle_path) as bundle:
        mapped = bundle.map_weights(bundle.manifest.variants[0])
    for weight in mapped:
        assert weight.ctypes.data % (PAGE_BYTES if weight.nbytes >= PAGE_ALIGNED_FROM_BYTES else ALIGNMENT_BYTES) == 0
    mapped[0][...] = 0
    assert bundle_path.read_bytes() == before


def test_a_large_weight_begins_at_a_page(tmp_path):
    weight = np.random.default_rng(1).normal(size=(129, 131)).astype("float64")
    path = write(tmp_path / "m.tvmb", make_variant(tmp_path, "native", (np.ones(3), weight)))
    with open_bundle(path) as bundle:
        mapped = bundle.map_weights(bundle.manifest.variants[0])
    assert mapped[1].ctypes.data % PAGE_BYTES == 0
    np.testing.assert_array_equal(mapped[1], weight)


def test_bfloat16_strided_and_big_endian_weights_are_stored_plainly(tmp_path):
    base = np.random.default_rng(2).normal(size=(6, 8)).astype("float32")
    weights = (base.astype(ml_dtypes.bfloat16), base[::2, ::3], base.T, base.astype(">f4"))
    path = write(tmp_path / "m.tvmb", make_variant(tmp_path, "native", weights))
    with open_bundle(path) as bundle:
        mapped = bundle.map_weights(bundle.manifest.variants[0])
    assert [weight.dtype.name for weight in mapped] == ["bfloat16", "float32", "float32", "float32"]
    for weight, again in zip(weights, mapped, strict=True):
        assert again.flags.c_contiguous
        np.testing.assert_array_equal(again.astype("float32"), weight.astype("float32"))


def test_equal_inputs_give_equal_bytes(tmp_path, bundle_path):
    again = write(
        tmp_path / "again.tvmb",
        make_variant(tmp_path, "native", draw_weights(), accuracy=ACCURACY, latency_us=12.5),
    )
    assert again.read_bytes() == bundle_path.read_bytes()


def test_weights_and_runtime_libraries_of_several_variants_are_stored_once(tmp_path):
    big, small = np.arange(100_000, dtype="float32"), np.arange(5, dtype="float32")
    one = make_variant(tmp_path, "v3", (big, small))
    two = make_variant(tmp_path, "v4", (big.reshape(1000, 100), small, small + 1))
    path = write(tmp_path / "m.tvmb", one, two)
    names = zipfile.ZipFile(path).namelist()
    assert len([name for name in names if name.startswith("weights/sha256-")]) == 3
    assert len([name for name in names if name.startswith("runtime/")]) == 1
    with open_bundle(path) as bundle:
        assert bundle.map_weights(bundle.manifest.variants[1])[0].shape == (1000, 100)


def test_any_zip_tool_reads_it_stored_sorted_and_without_a_date(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
    assert infos[0].filename == "manifest.json"
    assert [info.filename for info in infos[1:]] == sorted(info.filename for info in infos[1:])
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {stat.S_IMODE(info.external_attr >> 16) for info in infos} == {0o644}


def test_a_manifest_renders_sorted_and_parses_to_itself(bundle_path):
    with open_bundle(bundle_path) as bundle:
        text = render_manifest(bundle.manifest)
    assert parse_manifest(text, "m") == bundle.manifest
    pairs = json.loads(text, object_pairs_hook=list)
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    assert text.startswith(b'{\n  "created_by"') and text.endswith(b"}\n")


def read_pieces(pieces: list[tuple[int, bytes]]):
    def read_at(offset: int, count: int) -> bytes:
        for start, data in pieces:
            if start <= offset < start + len(data):
                return data[offset - start : offset - start + count]
        return bytes(count)

    return read_at


@given(st.lists(st.integers(0, 2**39) | st.sampled_from([2**32 - 2, 2**32 - 1, 2**32, 2**16]), min_size=1, max_size=12))
def test_the_layout_of_any_sizes_is_parsed_again_zip64_included(sizes):
    named = [("manifest.json", 10, 1), *((f"weights/{index}", size, index) for index, size in enumerate(sizes))]
    planned, ending = plan_archive(named)
    end = planned[-1].data_offset + planned[-1].size_bytes
    pieces = [(member.header_offset, member.header) for member in planned] + [(end, ending)]
    found = parse_archive(read_pieces(pieces), end + len(ending), "m")
    assert [(member.name, member.size_bytes, member.crc32) for member in found] == named
    assert [member.data_offset for member in found] == [member.data_offset for member in planned]
    for member in found:
        assert (
            member.data_offset % (PAGE_BYTES if member.size_bytes >= PAGE_ALIGNED_FROM_BYTES else ALIGNMENT_BYTES) == 0
        )


def test_zipfile_reads_members_beyond_four_gigabytes_of_a_sparse_file(tmp_path):
    size = 5 * 2**30
    named = [("manifest.json", 3, zlib.crc32(b"abc")), ("a", size, 7), ("b", 3, zlib.crc32(b"xyz"))]
    planned, ending = plan_archive(named)
    path = tmp_path / "sparse.zip"
    with open(path, "wb") as stream:
        for member, data in zip(planned, (b"abc", b"", b"xyz"), strict=True):
            stream.seek(member.header_offset)
            stream.write(member.header + data)
        stream.write(ending)
    assert path.stat().st_size > size and path.stat().st_blocks * 512 < 2**20
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [3, size, 3]
        assert (archive.read("manifest.json"), archive.read("b")) == (b"abc", b"xyz")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(BundleFormatError, match=r"nowhere\.tvmb: there is no such file"):
        open_bundle(tmp_path / "nowhere.tvmb")


def test_a_folder_an_empty_file_a_pipe_and_a_foreign_file_are_told_apart(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "foreign").write_bytes(b"\x08\x07\x12\x04onnx" * 50)
    os.mkfifo(tmp_path / "pipe")
    messages = []
    for name in ("", "empty", "foreign", "pipe"):
        with pytest.raises(BundleFormatError) as caught:
            open_bundle(tmp_path / name)
        messages.append(caught.value.message)
    for message, part in zip(
        messages, ("is a folder", "is empty", "not a tvmbridge bundle", "plain file"), strict=True
    ):
        assert part in message
    with pytest.raises(BundleFormatError, match="cannot be opened"):
        open_bundle("a\0b")


def test_a_truncated_and_an_extended_bundle_are_refused(bundle_path):
    whole = bundle_path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:20], whole + b"\0", b"#!/bin/sh\n" + whole):
        bundle_path.write_bytes(damaged)
        with pytest.raises(BundleFormatError, match=r"truncated|not begin"):
            open_bundle(bundle_path)


def test_a_zip_that_is_no_bundle_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", {"readme.txt": b"hello"})
    with pytest.raises(BundleFormatError, match="not a bundle"):
        open_bundle(path)
    path = write_archive(tmp_path / "b.zip", {"manifest.json": b'{"manifest_version": 3, "name": "an extension"}'})
    with pytest.raises(BundleFormatError, match="not a bundle's"):
        open_bundle(path)
    path = write_archive(tmp_path / "c.zip", {"manifest.json": b'{"format": "other", "version": 1}'})
    with pytest.raises(BundleFormatError, match="format is 'other'"):
        open_bundle(path)


def test_a_zip_with_compressed_or_encrypted_members_is_refused(bundle_path):
    central = find_central(bundle_path, "variants/native/model.so")
    patch(bundle_path, central + 10, struct.pack("<H", 8))
    with pytest.raises(BundleFormatError, match="compressed"):
        open_bundle(bundle_path)
    patch(bundle_path, central + 8, struct.pack("<HH", 1, 0))
    with pytest.raises(BundleFormatError, match="encrypted"):
        open_bundle(bundle_path)


def test_a_symbolic_link_in_a_bundle_is_refused(bundle_path):
    central = find_central(bundle_path, "variants/native/model.so")
    patch(bundle_path, central + 38, struct.pack("<L", (stat.S_IFLNK | 0o777) << 16))
    with pytest.raises(BundleFormatError, match="not a plain file"):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    "name", ["../evil.so", "/etc/passwd.so", "a\\b.so", "C:x.so", "a//b.so", "variants/", ".ssh/x", "é"]
)
def test_a_name_that_climbs_out_or_is_odd_is_refused(tmp_path, name):
    central = name.encode("ascii", "replace")
    planned, ending = plan_archive([("manifest.json", 2, 0), ("x" * len(central), 0, 0)])
    data = planned[0].header + b"{}" + planned[1].header + ending
    path = tmp_path / "m.tvmb"
    path.write_bytes(data.replace(b"x" * len(central), central))
    with pytest.raises(BundleFormatError, match="is not allowed"):
        open_bundle(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    planned, ending = plan_archive([("manifest.json", 2, 0), ("a", 0, 0), ("a", 0, 0)])
    path = tmp_path / "m.tvmb"
    path.write_bytes(planned[0].header + b"{}" + planned[1].header + planned[2].header + ending)
    with pytest.raises(BundleFormatError, match="there twice"):
        open_bundle(path)


def test_overlapping_members_and_hidden_bytes_are_refused(bundle_path):
    central = find_central(bundle_path, "variants/native/model.so")
    (offset,) = struct.unpack("<L", bundle_path.read_bytes()[central + 42 : central + 46])
    for shift, message in ((-64, "overlaps"), (64, "bytes of no member")):
        patch(bundle_path, central + 42, struct.pack("<L", offset + shift))
        with pytest.raises(BundleFormatError, match=message):
            open_bundle(bundle_path)


def test_a_header_that_contradicts_the_directory_is_refused(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        offset = archive.getinfo("variants/native/model.so").header_offset
    whole = bundle_path.read_bytes()
    patch(bundle_path, offset + 22, struct.pack("<L", 5))
    with pytest.raises(BundleFormatError, match="contradicts"):
        open_bundle(bundle_path)
    bundle_path.write_bytes(whole)
    patch(bundle_path, offset + 30, b"w")
    with pytest.raises(BundleFormatError, match="another name"):
        open_bundle(bundle_path)


def test_a_size_beyond_the_file_is_refused_before_anything_is_read(bundle_path):
    central = find_central(bundle_path, "variants/native/model.so")
    with zipfile.ZipFile(bundle_path) as archive:
        offset = archive.getinfo("variants/native/model.so").header_offset
    patch(bundle_path, central + 20, struct.pack("<LL", 2**31, 2**31))
    patch(bundle_path, offset + 18, struct.pack("<LL", 2**31, 2**31))
    with pytest.raises(BundleFormatError, match="beyond its place"):
        open_bundle(bundle_path)


def test_an_oversized_manifest_is_refused(tmp_path):
    path = write_archive(tmp_path / "m.tvmb", {"manifest.json": b" " * (MAX_MANIFEST_BYTES + 1)})
    with pytest.raises(BundleFormatError, match="more than"):
        open_bundle(path)


def test_a_damaged_manifest_is_refused(bundle_path):
    at = bundle_path.read_bytes().index(b'"digits"')
    patch(bundle_path, at + 1, b"D")
    with pytest.raises(BundleFormatError, match="checksum"):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["members"].pop("tuning.jsonl"), "no member"),
        (lambda m: m.update(log=None), "nothing in the manifest uses"),
        (lambda m: m.update(variants=[]), "no variant"),
        (lambda m: m.update(variants=m["variants"] * 2), "same name"),
        (lambda m: m.update(surprise=1), "malformed"),
        (lambda m: m["variants"][0].update(library="../../x.so"), "no member"),
        (lambda m: m["variants"][0].update(name="a/b"), "variant name"),
        (lambda m: m["variants"][0].update(cores=0), "0 cores"),
        (lambda m: m["variants"][0].update(kind="fpga"), "malformed"),
        (lambda m: m["variants"][0]["weights"][0].update(shape=[31, 18]), "takes"),
        (lambda m: m["variants"][0]["weights"][0].update(shape=[-31, -17]), "usable dtype"),
        (lambda m: m["variants"][0]["weights"][0].update(dtype="object"), "usable dtype"),
        (lambda m: m["members"]["tuning.jsonl"].update(sha256="00"), "64 hexadecimal"),
        (lambda m: m["members"]["tuning.jsonl"].update(size_bytes=-1), "size of"),
        (lambda m: m["members"]["tuning.jsonl"].update(size_bytes=5), "not the promised 5"),
        (lambda m: m["members"]["variants/native/model.so"].update(size_bytes=MAX_LIBRARY_BYTES + 1), "at most"),
        (lambda m: m["signature"]["inputs"][0].update(shape=[None]), "unbound"),
        (lambda m: m["signature"]["inputs"][0].update(dtype="complex"), "unknown dtype"),
        (lambda m: m["signature"].update(outputs=[]), "no output"),
        (lambda m: m["signature"]["inputs"][1].update(index_limit=0), "index limit 0"),
        (lambda m: m["signature"]["inputs"][0].update(index_limit=9), "x, float32, has the index limit 9"),
        (lambda m: m["signature"]["outputs"][0].update(dtype="int64", index_limit=9), "an output has an index limit"),
        (lambda m: m["signature"].update(inputs=m["signature"]["inputs"] * 2), "same name"),
        (lambda m: m.update(version=0), "does not exist"),
        (lambda m: m["members"].update({"attachments/sbom.json": {"sha256": "0" * 64, "size_bytes": 1}}), "is missing"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_the_archive_is_refused(bundle_path, change, message):
    rewrite_manifest(bundle_path, change)
    with pytest.raises(BundleFormatError, match=message):
        open_bundle(bundle_path)


def test_a_member_that_the_manifest_does_not_list_is_refused(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    write_archive(bundle_path, contents | {"zz.so": b"evil"})
    with pytest.raises(BundleFormatError, match=r"zz\.so is not in the manifest"):
        open_bundle(bundle_path)


def test_an_attachment_that_the_manifest_lists_is_let_through(bundle_path):
    def attach(manifest):
        manifest["members"]["attachments/note"] = manifest["members"].pop("tuning.jsonl")
        manifest["log"] = None

    rewrite_manifest(bundle_path, attach, rename={"tuning.jsonl": "attachments/note"})
    with open_bundle(bundle_path) as bundle:
        assert bundle.read_member("attachments/note") == b'{"format": "log"}\n'


def test_a_newer_version_says_so_whatever_else_it_changed(bundle_path):
    def modernise(manifest):
        manifest["version"] = VERSION + 1
        manifest["variants"] = {"as": "a table"}

    rewrite_manifest(bundle_path, modernise)
    with pytest.raises(NewerVersionError, match=f"version {VERSION + 1}") as caught:
        open_bundle(bundle_path)
    assert "upgrade" in caught.value.hint


def test_changed_bytes_of_a_library_or_a_weight_are_found_before_use(bundle_path):
    with open_bundle(bundle_path) as bundle:
        variant = bundle.manifest.variants[0]
        places = {name: bundle._members[name].data_offset for name in (variant.library, variant.weights[0].member)}
    for offset in places.values():
        patch(bundle_path, offset, bytes([bundle_path.read_bytes()[offset] ^ 1]))
    with open_bundle(bundle_path) as bundle:
        with pytest.raises(DigestError, match=r"model\.so"):
            bundle.read_member(variant.library)
        with pytest.raises(DigestError, match="weights/sha256"):
            bundle.map_weights(variant)


def test_a_closed_bundle_says_so(bundle_path):
    bundle = open_bundle(bundle_path)
    bundle.close()
    bundle.close()
    with pytest.raises(ValueError, match="is closed"):
        bundle.read_member("tuning.jsonl")


def test_refused_bundles_leave_no_file_open(bundle_path):
    patch(bundle_path, 0, b"XX")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(ArtifactError):
            open_bundle(bundle_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_unwritable_places_are_output_errors_that_leave_nothing_behind(tmp_path):
    variant = make_variant(tmp_path, "native")
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="No such file") as caught:
        write(tmp_path / "no" / "folder" / "m.tvmb", variant)
    assert "mkdir -p" in caught.value.hint
    with pytest.raises(OutputError, match="it is a folder"):
        write(tmp_path, variant)
    with pytest.raises(OutputError, match="Not a directory"):
        write(tmp_path / "file" / "m.tvmb", variant)
    with pytest.raises(OutputError, match="cannot be read"):
        write(tmp_path / "m.tvmb", replace(variant, library=tmp_path / "gone.so"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_keeps_the_old_bundle_and_leaves_no_temporary_file(bundle_path):
    old = bundle_path.read_bytes()
    variant = make_variant(bundle_path.parent, "native", (np.arange(100_000.0),))
    before = sorted(bundle_path.parent.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write(bundle_path, variant)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert bundle_path.read_bytes() == old
    assert sorted(bundle_path.parent.iterdir()) == before


def test_a_reader_sees_the_old_or_the_new_bundle_while_one_is_written(bundle_path):
    variants = [make_variant(bundle_path.parent, "native", (np.full(20_000, value),)) for value in (1.0, 2.0)]
    write(bundle_path, variants[0])
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for variant in variants:
                write(bundle_path, variant)

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = []
    try:
        for _ in range(50):
            with open_bundle(bundle_path) as bundle:
                seen.append(set(bundle.map_weights(bundle.manifest.variants[0])[0]))
    finally:
        stop.set()
        writer.join()
    assert all(values in ({1.0}, {2.0}) for values in seen)


def test_what_the_reader_would_refuse_is_not_written(tmp_path, monkeypatch):
    variant = make_variant(tmp_path, "native")
    bad = replace(variant, accuracy=Accuracy(float("nan"), 0.0, 1.0, 1e-3, "onnxruntime", 1))
    with pytest.raises(BundleFormatError):
        write(tmp_path / "m.tvmb", bad)
    with pytest.raises(BundleFormatError, match="no variant"):
        write(tmp_path / "m.tvmb")
    with pytest.raises(ValueError, match="no place in a bundle"):
        write(tmp_path / "m.tvmb", replace(variant, weights=(np.array(["text"]),)))
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 500)
    with pytest.raises(BundleFormatError, match="at most 500 are allowed"):
        write(tmp_path / "m.tvmb", variant)
    assert not (tmp_path / "m.tvmb").exists()


def test_the_permissions_of_a_bundle_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = write(tmp_path / "m.tvmb", make_variant(tmp_path, "native"), log=None)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with open_bundle(path) as bundle:
        assert bundle.manifest.log is None


def test_the_frozen_bundle_of_version_1_is_read_today():
    with open_bundle(Path(__file__).parent / "golden" / "bundle-v1.tvmb") as bundle:
        variant = bundle.manifest.variants[0]
        assert (bundle.manifest.model, bundle.manifest.signature) == (MODEL, SIGNATURE)
        assert (variant.name, variant.requires.cpu_features, variant.latency_us) == ("native", ("avx2",), 12.5)
        assert variant.accuracy == ACCURACY
        assert bundle.read_member(variant.library) == b"\x7fELF" + b"native" * 50
        assert bundle.read_member(bundle.manifest.log) == b'{"format": "log"}\n'
        (weight,) = bundle.map_weights(variant)
        np.testing.assert_array_equal(weight, np.arange(6, dtype="float32").reshape(2, 3))


def test_the_frozen_signed_bundle_of_version_2_is_read_today():
    golden = Path(__file__).parent / "golden"
    with open_bundle(golden / "bundle-v2.tvmb") as bundle:
        variant = bundle.manifest.variants[0]
        assert (bundle.manifest.version, bundle.manifest.model, bundle.manifest.signature) == (2, MODEL, SIGNATURE)
        assert len(verify_signature(bundle, golden / "bundle-v2.key.pub")) == 64
        bundle.check_members()
        (weight,) = bundle.map_weights(variant)
        np.testing.assert_array_equal(weight, np.arange(6, dtype="float32").reshape(2, 3))


def test_every_limit_in_the_specification_is_the_code_s():
    text = (Path(__file__).parents[1] / "docs" / "bundle-format.md").read_text()
    stated = {name: shown for name, shown in re.findall(r"`([A-Z_]+)` \(([^)]+)\)", text) if name not in ("FORMAT",)}
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    for name, shown in stated.items():
        number, _, unit = shown.replace(",", "").partition(" ")
        assert int(number) * units.get(unit, 1) == next(
            getattr(module, name)
            for module in (manifest_module, archive_module, signing_module)
            if hasattr(module, name)
        )
    assert len(stated) == 11


def test_importing_the_format_imports_no_compiler():
    code = "import sys, tvmbridge.bundle; print(sorted({'tvm', 'tvm_ffi', 'onnx', 'xgboost'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_manifest_is_deeply_immutable(bundle_path):
    with open_bundle(bundle_path) as bundle, pytest.raises(AttributeError):
        bundle.manifest.version = 2
    with pytest.raises(AttributeError):
        bundle.manifest.variants[0].library = "x"
    assert msgspec.structs.replace(bundle.manifest, version=2).version == 2


def test_the_frozen_bundle_with_gpu_code_says_what_compiled_it_and_what_it_takes():
    with open_bundle(Path(__file__).parent / "golden" / "bundle-v2-gpu.tvmb") as bundle:
        bundle.check_members()
        said = {variant.name: variant.gpu for variant in bundle.manifest.variants}
    assert said == {"gpu": GpuFacts("nvcc 13.0.88", 64, False), "native": None}


@pytest.mark.parametrize("version", [1, 2])
def test_a_bundle_from_before_says_nothing_of_gpu_code(version):
    with open_bundle(Path(__file__).parent / "golden" / f"bundle-v{version}.tvmb") as bundle:
        assert [variant.gpu for variant in bundle.manifest.variants] == [None] * len(bundle.manifest.variants)
