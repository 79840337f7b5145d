"""Weights that were checked before are not read again; a file that could be another is."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.test_bundle import make_variant, write
from tvmbridge.bundle import open_bundle
from tvmbridge.runtime.checked import CheckedWeights


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    weights = (np.random.default_rng(0).normal(size=(400, 800)).astype("float32"),)
    path = write(tmp_path / "model.tvmb", make_variant(tmp_path, "native", weights))
    return path


def look(path: Path, cache: Path, *, remember: bool = True, years: float = 1.0) -> bool:
    """Whether the weights were known; as seen by a process that long after now, to which the file is old."""
    now = time.time_ns
    time.time_ns = lambda: now() + int(years * 365 * 86400 * 1e9)
    try:
        with open_bundle(path) as bundle:
            checked = CheckedWeights(bundle, bundle.manifest.variants[0], cache)
            if remember:
                checked.remember()
            return checked.known
    finally:
        time.time_ns = now


def test_a_file_is_known_once_it_was_checked(bundle_path, tmp_path):
    cache = tmp_path / "cache"
    assert [look(bundle_path, cache) for _ in range(3)] == [False, True, True]


def test_a_file_that_was_just_written_is_not_remembered(bundle_path, tmp_path):
    cache = tmp_path / "cache"
    assert [look(bundle_path, cache, years=0) for _ in range(2)] == [False, False]
    assert not cache.exists()


def test_a_copy_a_touched_and_a_rewritten_file_are_checked_again(bundle_path, tmp_path):
    cache = tmp_path / "cache"
    look(bundle_path, cache)
    copy = tmp_path / "copy.tvmb"
    shutil.copy2(bundle_path, copy)
    assert not look(copy, cache, remember=False)
    assert look(bundle_path, cache)
    times = (bundle_path.stat().st_atime_ns, bundle_path.stat().st_mtime_ns)
    data = bundle_path.read_bytes()
    time.sleep(0.05)
    with open(bundle_path, "r+b") as stream:
        stream.seek(len(data) // 2)
        stream.write(bytes([data[len(data) // 2] ^ 1]))
    os.utime(bundle_path, ns=times)  # mtime as it was: ctime is not
    assert not look(bundle_path, cache)


def test_a_note_that_others_could_have_written_is_worth_nothing(bundle_path, tmp_path):
    cache = tmp_path / "cache"
    look(bundle_path, cache)
    cache.chmod(0o777)
    assert not look(bundle_path, cache)
    cache.chmod(0o700)
    (note,) = cache.iterdir()
    note.chmod(0o666)
    assert not look(bundle_path, cache, remember=False)


def test_small_weights_leave_no_note(tmp_path):
    path = write(tmp_path / "small.tvmb", make_variant(tmp_path, "native", (np.ones(9, "float32"),)))
    assert [look(path, tmp_path / "cache") for _ in range(2)] == [False, False]
    assert not (tmp_path / "cache").exists()
