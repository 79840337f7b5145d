"""Which variant fits which host: verdicts, their order, their reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvmbridge.bundle import Manifest, ModelFacts, Requires, VariantEntry
from tvmbridge.errors import NoVariantError
from tvmbridge.host import Gpu, Host
from tvmbridge.runtime.choose import Software, choose_variant, judge_variant, judge_variants
from tvmbridge.signature import ModelSignature, TensorSpec

V2, V3, V4 = ("sse4.2",), ("avx2", "fma", "sse4.2"), ("avx2", "avx512f", "fma", "sse4.2")
HOST = Host("x86_64", "a CPU", frozenset(V4) | {"avx512vnni"}, 4, "2.36", 0)
SOFTWARE = Software(tvm_ffi="0.1.14.post1", tvm=None, imported_tvm=None)


def entry(name: str, features=V3, **changes) -> VariantEntry:
    facts = {
        "kind": "x86",
        "triple": "x86_64-linux-gnu",
        "cpu": "x86-64-v3",
        "features": (),
        "cores": 4,
        "architectures": (),
        "requires": Requires("x86_64", features, changes.get("architectures", ()), "2.17"),
        "tvm": "0.27.0.post1",
        "tvm_ffi": "0.1.14.post0",
        "library": "l",
        "runtime_libraries": ("r",),
        "weights": (),
        "kernels": 1,
        "tuned_kernels": 0,
    }
    return VariantEntry(name=name, **(facts | changes))


def cuda(name: str, *architectures: str) -> VariantEntry:
    return entry(name, kind="cuda", architectures=architectures)


def manifest(*variants: VariantEntry) -> Manifest:
    signature = ModelSignature((), (TensorSpec("y", (1,), "float32"),))
    return Manifest("tvmbridge-bundle", 1, "test", ModelFacts("m", "0" * 64, 17), signature, variants, {})


def levels(verdicts) -> list[tuple[str, str]]:
    return [(verdict.variant, verdict.level) for verdict in verdicts]


def test_the_widest_level_that_the_cpu_has_comes_first_and_the_next_one_down_after_it():
    bundle = manifest(entry("v2", V2), entry("v4", V4), entry("v3", V3))
    assert levels(judge_variants(bundle, HOST, SOFTWARE)) == [
        ("v4", "optimal"),
        ("v3", "rebuild advised"),
        ("v2", "rebuild advised"),
    ]
    older = replace(HOST, cpu_features=frozenset(V3))
    verdicts = judge_variants(bundle, older, SOFTWARE)
    assert levels(verdicts) == [("v3", "optimal"), ("v2", "rebuild advised"), ("v4", "unsupported")]
    assert verdicts[2].reason == "this CPU lacks avx512f"
    assert choose_variant(bundle, older, SOFTWARE).name == "v3"
    assert choose_variant(bundle, HOST, SOFTWARE, "v2").name == "v2"


def test_a_variant_for_fewer_cores_is_supported_but_narrower_vectors_never_go_before_it():
    bundle = manifest(entry("v3", V3, cores=4), entry("v4-2", V4, cores=2), entry("v4-8", V4, cores=8))
    assert levels(judge_variants(bundle, HOST, SOFTWARE)) == [
        ("v4-8", "optimal"),
        ("v4-2", "supported"),
        ("v3", "rebuild advised"),
    ]


@pytest.mark.parametrize(
    ("built", "here", "level"),
    [
        (("sm_80", "sm_90"), "sm_90", "optimal"),
        (("sm_80",), "sm_86", "supported"),
        (("sm_86",), "sm_80", "unsupported"),
        (("sm_80",), "sm_90", "rebuild advised"),
        (("sm_90",), "sm_86", "unsupported"),
        (("sm_75", "sm_90"), "sm_86", "unsupported"),
        (("sm_90",), "sm_120", "rebuild advised"),
        (("sm_90a",), "sm_90", "unsupported"),
        (("sm_90a",), "sm_100", "unsupported"),
    ],
)
def test_gpu_code_runs_within_its_major_version_and_ptx_on_what_is_newer(built, here, level):
    host = replace(HOST, gpus=(Gpu("a GPU", here),))
    assert judge_variant(cuda("gpu", *built), host, SOFTWARE).level == level


def test_a_gpu_variant_goes_before_every_cpu_variant_where_there_is_a_gpu_and_nowhere_else():
    bundle = manifest(entry("v4", V4), cuda("gpu", "sm_80"))
    with_gpu = replace(HOST, gpus=(Gpu("a GPU", "sm_90"),))
    assert levels(judge_variants(bundle, with_gpu, SOFTWARE)) == [("gpu", "rebuild advised"), ("v4", "optimal")]
    verdicts = judge_variants(bundle, HOST, SOFTWARE)
    assert levels(verdicts) == [("v4", "optimal"), ("gpu", "unsupported")]
    assert "needs a CUDA GPU: there is none" in verdicts[1].reason


@pytest.mark.parametrize(
    ("change", "host", "software", "reason"),
    [
        ({}, replace(HOST, machine="aarch64"), SOFTWARE, "is for x86_64; this machine is aarch64"),
        ({}, replace(HOST, glibc="2.9"), SOFTWARE, "needs glibc 2.17; this system has 2.9"),
        ({}, replace(HOST, glibc=None), SOFTWARE, "another C library"),
        ({}, HOST, replace(SOFTWARE, tvm_ffi=None), "pip install apache-tvm-ffi==0.1.14.post0"),
        ({}, HOST, replace(SOFTWARE, tvm_ffi="0.1.15"), "pip install apache-tvm-ffi==0.1.14.post0"),
        ({}, HOST, replace(SOFTWARE, imported_tvm="0.26.0"), "has imported tvm 0.26.0"),
        ({"runtime_libraries": ()}, HOST, SOFTWARE, "pip install apache-tvm==0.27.0.post1"),
        ({"runtime_libraries": ()}, HOST, replace(SOFTWARE, tvm="0.27.0"), "0.27.0 is installed"),
    ],
)
def test_what_keeps_a_variant_from_running_is_said_with_its_cure(change, host, software, reason):
    verdict = judge_variant(entry("v3", V3, **change), host, software)
    assert verdict.level == "unsupported"
    assert reason in verdict.reason


def test_the_installed_tvm_serves_a_variant_that_carries_no_runtime():
    software = replace(SOFTWARE, tvm="0.27.0.post1")
    assert judge_variant(entry("v4", V4, runtime_libraries=()), HOST, software).level == "optimal"


def test_no_fitting_variant_is_one_error_with_every_reason():
    bundle = manifest(entry("v4", V4), cuda("gpu", "sm_90"))
    with pytest.raises(NoVariantError, match="v4: this CPU lacks avx2, avx512f, fma") as caught:
        choose_variant(bundle, replace(HOST, cpu_features=frozenset(V2)), SOFTWARE)
    assert set(caught.value.reasons) == {"v4", "gpu"}
    with pytest.raises(NoVariantError, match="no variant 'v5'") as caught:
        choose_variant(bundle, HOST, SOFTWARE, "v5")
    assert caught.value.hint == "it has: v4, gpu"
    with pytest.raises(NoVariantError, match="variant gpu does not run"):
        choose_variant(bundle, HOST, SOFTWARE, "gpu")
