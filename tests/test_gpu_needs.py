"""What a CUDA variant needs beside a GPU: NVIDIA's runtime library and a driver that is new enough; found or named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_choose import HOST, SOFTWARE, cuda, entry, manifest

from tvmbridge import cuda_runtime
from tvmbridge.bundle import VariantEntry
from tvmbridge.cuda_runtime import cudart_folder, install_hint, load_cudart, needed_cudart
from tvmbridge.host import Gpu
from tvmbridge.runtime.choose import fitting_variants, judge_variant
from tvmbridge.runtime.devices import Device, parse_device, why_no_cuda

GPU_HOST = replace(HOST, gpus=(Gpu("A", "sm_80"), Gpu("B", "sm_90")), cuda="13.0")
LIBRARY = b"\x7fELF\0libtvm_runtime.so\0libcudart.so.13\0libcuda.so.1\0"


def bundle_with(library: bytes) -> SimpleNamespace:
    return SimpleNamespace(read_member=lambda name: library)


def carrying() -> VariantEntry:
    libraries = ("lib/libtvm_runtime.so", "lib/libtvm_runtime_cuda.so")
    return entry("gpu", kind="cuda", architectures=("sm_80",), runtime_libraries=libraries)


def test_the_library_that_is_needed_is_read_from_the_one_that_needs_it():
    assert needed_cudart(LIBRARY) == "libcudart.so.13"
    assert needed_cudart(b"libcudart.so.11.0\0") == "libcudart.so.11.0"
    assert needed_cudart(b"libcudart.so.13 is a name\0libm.so.6\0") is None


def test_without_nvidias_runtime_the_verdict_names_the_package(monkeypatch):
    monkeypatch.setattr("tvmbridge.runtime.devices.load_cudart", lambda name: False)
    why = why_no_cuda(bundle_with(LIBRARY), carrying(), GPU_HOST, None)
    assert (
        why == "needs NVIDIA's libcudart.so.13, which is not on this machine: pip install 'nvidia-cuda-runtime==13.*'"
    )
    assert judge_variant(cuda("gpu", "sm_80"), GPU_HOST, replace(SOFTWARE, unloadable={"gpu": why})).reason == why


def test_a_driver_that_is_too_old_is_a_reason(monkeypatch):
    monkeypatch.setattr("tvmbridge.runtime.devices.load_cudart", lambda name: True)
    assert why_no_cuda(bundle_with(LIBRARY), carrying(), GPU_HOST, None) is None
    why = why_no_cuda(bundle_with(LIBRARY), carrying(), replace(GPU_HOST, cuda="12.8"), None)
    assert why is not None and "needs a driver for CUDA 13.0 or newer; this one is for CUDA 12.8" in why


def test_a_variant_without_a_runtime_goes_by_the_installed_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tvmbridge.runtime.devices.load_cudart", lambda name: False)
    assert why_no_cuda(bundle_with(b""), cuda("gpu", "sm_80"), GPU_HOST, tmp_path) is None
    (tmp_path / "libtvm_runtime_cuda.so").write_bytes(LIBRARY)
    assert "libcudart.so.13" in (why_no_cuda(bundle_with(b""), cuda("gpu", "sm_80"), GPU_HOST, tmp_path) or "")


def test_nvidias_wheel_is_found_and_then_the_toolkit(tmp_path: Path, monkeypatch):
    wheel, toolkit = tmp_path / "nvidia", tmp_path / "cuda"
    for folder in (wheel / "cu99" / "lib", toolkit / "lib64"):
        folder.mkdir(parents=True)
        (folder / "libcudart.so.99").write_text("no library")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(wheel)])
    )
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert cudart_folder("libcudart.so.99") == str(wheel / "cu99" / "lib")
    tried: list[str] = []
    monkeypatch.setattr(cuda_runtime, "_loads", lambda path: bool(tried.append(path)) or "lib64" in path)
    assert load_cudart("libcudart.so.99")
    assert tried == ["libcudart.so.99", *(str(p / "libcudart.so.99") for p in (wheel / "cu99/lib", toolkit / "lib64"))]
    monkeypatch.undo()
    assert not load_cudart("libcudart.so.99") and install_hint("libcudart.so.99").endswith("==99.*'")


def test_devices_are_named_as_elsewhere():
    assert [parse_device(text) for text in ("cpu", "cuda", "cuda:0", "cuda:12")] == [
        Device("cpu"),
        Device("cuda"),
        Device("cuda", 0),
        Device("cuda", 12),
    ]
    for text in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:1 ", None):
        with pytest.raises(ValueError, match="cuda:N"):
            parse_device(text)  # type: ignore[arg-type]


def test_a_variant_is_judged_for_the_gpu_that_is_asked_for():
    variant = cuda("gpu", "sm_90")
    assert judge_variant(variant, GPU_HOST, SOFTWARE).level == "unsupported"
    assert judge_variant(variant, GPU_HOST, SOFTWARE, Device("cuda", 1)).level == "optimal"
    assert "there is no cuda:2" in judge_variant(variant, GPU_HOST, SOFTWARE, Device("cuda", 2)).reason
    assert "the device asked for is cpu" in judge_variant(variant, GPU_HOST, SOFTWARE, Device("cpu")).reason
    bundle = manifest(entry("v3"), variant)
    assert [v.name for v in fitting_variants(bundle, GPU_HOST, SOFTWARE, device=Device("cuda", 1))] == ["gpu"]
    assert [v.name for v in fitting_variants(bundle, GPU_HOST, SOFTWARE, device=Device("cpu"))] == ["v3"]


def test_why_there_is_no_gpu_is_the_drivers_own_word():
    host = replace(HOST, no_gpu_because="the NVIDIA driver does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in judge_variant(cuda("gpu", "sm_80"), host, SOFTWARE).reason
