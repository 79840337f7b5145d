"""Damaged bundles of a real model: each one gives the right outputs or is refused; no crash, no stray file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tvmbridge
from tests.test_bundle import write_archive
from tests.test_deploy import DIGITS, ROOT

MUTATIONS = 2000

pytestmark = pytest.mark.slow

# In a process of its own: a crash is a failure of the test, not of the test run.
LOAD_MUTATED = """
import collections, os, random, sys
from pathlib import Path
import numpy as np
import tvmbridge
from tvmbridge.errors import ArtifactError

source, folder, inputs, count = Path(sys.argv[1]), Path(sys.argv[2]), np.load(sys.argv[3]), int(sys.argv[4])
whole = source.read_bytes()
expected = tvmbridge.load(source).run({"image": inputs["image"]})["logits"]
before = {path: sorted(os.listdir(path)) for path in (folder, Path(os.environ["TVMBRIDGE_CACHE"]))}
draw = random.Random(0)
ends = collections.Counter()
for index in range(count):
    data = bytearray(whole)
    for _ in range(draw.randint(1, 3)):
        # Half of the damage goes to the headers and the manifest at the front, and the directory at the end.
        at = draw.choice([draw.randrange(len(data)), draw.randrange(min(9000, len(data))), -draw.randint(1, 900)])
        at = max(0, at % len(data))
        kind = draw.choice(["set", "flip", "word", "cut", "insert", "delete", "copy"])
        if kind == "set":
            data[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == "flip":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "word":
            data[at : at + 4] = draw.choice([b"\\xff" * 4, bytes(4), b"\\xff\\xff\\xff\\x7f", b"PK\\x05\\x06"])
        elif kind == "cut" and at > 4:
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw.randbytes(draw.randint(1, 80))
        elif kind == "delete" and len(data) > 400:
            del data[at : at + draw.randint(1, 200)]
        else:
            other = draw.randrange(len(data))
            data[at : at + 60] = data[other : other + 60]
    path = folder / "m.tvmb"
    path.write_bytes(data)
    try:
        with tvmbridge.load(path) as session:
            found = session.run({"image": inputs["image"]})["logits"]
        assert np.array_equal(found, expected), index
        ends["the same"] += 1
    except ArtifactError as error:
        assert str(path) in str(error), (index, error)
        ends[type(error).__name__] += 1
    path.unlink()
    after = {path: sorted(os.listdir(path)) for path in before}
    assert after == before, (index, after)
print(dict(ends))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The digits model, on the installed runtime: small enough to write thousands of times."""
    folder = tmp_path_factory.mktemp("small")
    whole, path = folder / "digits.tvmb", folder / "small.tvmb"
    report = tvmbridge.build(tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), ["native"], whole, seconds=0.1)
    assert not report.failed
    with zipfile.ZipFile(whole) as archive:
        contents = {name: archive.read(name) for name in archive.namelist() if not name.startswith("runtime/")}
    manifest = json.loads(contents["manifest.json"])
    manifest["variants"][0]["runtime_libraries"] = []
    manifest["members"] = {n: m for n, m in manifest["members"].items() if not n.startswith("runtime/")}
    contents["manifest.json"] = json.dumps(manifest).encode()
    return write_archive(path, contents)


def run_mutated(code: str, tmp_path: Path, bundle: Path, *more: object) -> str:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "work").mkdir()
    np.savez(tmp_path / "in.npz", image=np.load(DIGITS.with_name("held_out.npz"))["image"][:1])
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TVMBRIDGE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, bundle, tmp_path / "work", tmp_path / "in.npz", *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=500, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


def test_two_thousand_damaged_bundles_are_right_or_refused(small, tmp_path):
    printed = run_mutated(LOAD_MUTATED, tmp_path, small, MUTATIONS)
    print(printed)
    assert "BundleFormatError" in printed and "DigestError" in printed


# Whoever writes a manifest can write a checksum: every value of it replaced in turn, and the model called if it loads.
LOAD_CHANGED = """
import collections, json, os, sys
from pathlib import Path
import numpy as np
import tvmbridge
from tvmbridge.errors import TvmBridgeError

folder, changed, inputs = Path(sys.argv[2]), Path(sys.argv[4]), np.load(sys.argv[3])
ends = collections.Counter()
for path in sorted(changed.iterdir()):
    print(path.name, file=sys.stderr, flush=True)
    try:
        with tvmbridge.load(path) as session:
            session.run({"image": inputs["image"]})
        ends["ran"] += 1
    except TvmBridgeError as error:
        ends[type(error).__name__] += 1
print(dict(ends))
"""


def test_a_manifest_with_any_value_changed_never_crashes_the_process(small, tmp_path):
    with zipfile.ZipFile(small) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(contents["manifest.json"])
    changed = tmp_path / "changed"
    changed.mkdir()
    places = list(find_places(manifest))
    for number, (place, key) in enumerate(places):
        for step, value in enumerate((None, -1, 0, 1, 7, 2**40, "", "x", "float64", [], {}, [1, 1], True, 1.5)):
            kept, place[key] = place[key], value
            write_archive(
                changed / f"{number}-{step}.tvmb", contents | {"manifest.json": json.dumps(manifest).encode()}
            )
            place[key] = kept
    printed = run_mutated(LOAD_CHANGED, tmp_path, small, changed)
    print(printed)
    assert "BundleFormatError" in printed


def find_places(node):
    """Every (container, key) of the manifest but those of the list of members, which all look alike."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list) and key != "members":
            yield from find_places(node[key])
