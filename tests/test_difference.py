"""What two bundles differ in: found by content, named, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.test_bundle import ACCURACY, draw_weights, make_variant, write
from tvmbridge.bundle import open_bundle
from tvmbridge.bundle.difference import find_differences


def manifest_of(path: Path):
    with open_bundle(path) as bundle:
        return bundle.manifest


def names(old: Path, new: Path) -> list[str]:
    return [difference.what for difference in find_differences(manifest_of(old), manifest_of(new))]


def test_equal_bundles_have_no_difference(tmp_path):
    variant = make_variant(tmp_path, "native", draw_weights(), accuracy=ACCURACY)
    assert names(write(tmp_path / "a.tvmb", variant), write(tmp_path / "b.tvmb", variant)) == []


def test_each_difference_is_named_with_both_values(tmp_path):
    old = make_variant(tmp_path, "native", draw_weights(), latency_us=10.0)
    changed = [*draw_weights()[:-1], np.ones((0, 5), dtype="int64")]
    new = replace(old, weights=tuple(changed), latency_us=12.0, tuned_kernels=3, accuracy=ACCURACY)
    a, b = write(tmp_path / "a.tvmb", old), write(tmp_path / "b.tvmb", new, log=None)
    found = {difference.what: difference for difference in find_differences(manifest_of(a), manifest_of(b))}
    assert (found["variant native: latency_us"].old, found["variant native: latency_us"].new) == (10.0, 12.0)
    assert found["log"].new is None and found["log"].old is not None
    expected = {"log", "variant native: latency_us", "variant native: tuned_kernels", "variant native: weights"}
    assert {what for what in found if ".accuracy" not in what and ": accuracy" not in what} == expected
    assert found["variant native: accuracy.tolerance"].old is None


def test_a_library_that_changed_and_a_variant_that_came_or_went_are_named(tmp_path):
    native = make_variant(tmp_path, "native")
    a = write(tmp_path / "a.tvmb", native, make_variant(tmp_path, "edge"))
    native.library.write_bytes(b"\x7fELF another")
    b = write(tmp_path / "b.tvmb", native, make_variant(tmp_path, "board"))
    assert names(a, b) == ["variant board", "variant edge", "variant native: library"]
