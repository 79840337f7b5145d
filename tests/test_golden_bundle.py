"""A whole bundle as version 0.1 wrote it: read by today's code, and run where its tvm-ffi is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_runtime import run_python
from tvmbridge.bundle import open_bundle
from tvmbridge.host import detect_host
from tvmbridge.runtime.choose import detect_software, judge_variants

GOLDEN = Path(__file__).parent / "golden"
BUNDLE, ARRAYS = GOLDEN / "digits-v2.tvmb", GOLDEN / "digits-v2.npz"

RUN = """
import sys, numpy as np, tvmbridge
arrays = np.load(sys.argv[2])
with tvmbridge.load(sys.argv[1]) as session:
    for image, logits in zip(arrays["image"], arrays["logits"]):
        np.testing.assert_allclose(session.run({"image": image[None]})["logits"][0], logits, rtol=1e-3, atol=1e-3)
print(session.variant)
"""


def test_its_members_are_what_they_were():
    with open_bundle(BUNDLE) as bundle:
        bundle.check_members()
        (variant,) = bundle.manifest.variants
        assert (variant.name, variant.tvm, variant.tvm_ffi) == ("x86-x86-64-v3", "0.27.0.post1", "0.1.14.post1")
        assert [Path(name).name for name in variant.runtime_libraries] == ["libtvm_runtime.so"]
        assert len(bundle.map_weights(variant)) == len(variant.weights) > 0


def test_it_runs_or_says_why_it_does_not(tmp_path):
    with open_bundle(BUNDLE) as bundle:
        (verdict,) = judge_variants(bundle.manifest, detect_host(), detect_software())
    if verdict.level == "unsupported":
        # Another tvm-ffi, or a machine without AVX2: what docs/stability.md promises is that it says so.
        assert any(word in verdict.reason for word in ("apache-tvm-ffi", "this CPU lacks", "is for x86_64"))
        pytest.skip(f"cannot run here: {verdict.reason}")
    assert run_python(RUN, BUNDLE, ARRAYS, cache=tmp_path) == "x86-x86-64-v3"
