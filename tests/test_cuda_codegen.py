"""CUDA libraries made without a GPU: machine code for every architecture and PTX of the newest, never source."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernels import lower_expression, random_array
from tvm import relax

from tvmbridge.bundle.gpu_code import GpuBuild, GpuFunction, MachineCode
from tvmbridge.codegen import build_variant, cuda
from tvmbridge.codegen.cuda import nvcc_architectures, require_nvcc
from tvmbridge.codegen.elf import read_elf_facts
from tvmbridge.codegen.fatbin import list_machine_code, list_ptx, parse_machine_code, parse_ptx
from tvmbridge.errors import CompileError, ToolchainError
from tvmbridge.host import find_nvcc
from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import Target, parse_preset, parse_targets
from tvmbridge.targets.gpu_architectures import GPU_ARCHITECTURES

pytestmark = [pytest.mark.compiler, pytest.mark.cuda]

TARGET = parse_preset("cuda:sm_80,sm_90")


def network(target: Target = TARGET) -> LoweredModel:
    weights = relax.const(random_array(np.random.default_rng(0), (64, 48), "float32"))
    op = relax.op
    return lower_expression(lambda x: op.nn.softmax(op.nn.relu(op.matmul(x, weights))), [((16, 64), "float32")], target)


@pytest.mark.slow
def test_a_library_holds_machine_code_for_each_architecture_and_no_source(tmp_path: Path) -> None:
    variant, plans = build_variant(network(), TARGET, None, tmp_path)
    assert list_machine_code(variant.library) == ("sm_80", "sm_90")
    assert list_ptx(variant.library) == ("sm_90",)
    assert b"__global__" not in variant.library.read_bytes()
    assert variant.requires.architectures == ("sm_80", "sm_90")
    assert [path.name for path in variant.runtime_libraries] == ["libtvm_runtime.so", "libtvm_runtime_cuda.so"]
    assert variant.gpu is not None
    assert {function.kernel for function in variant.gpu.functions} == {plan.symbol for plan in plans}


@pytest.mark.slow
@pytest.mark.parametrize("host", ["arm:neoverse-n1", "x86-64-v2"])
def test_the_code_beside_the_gpu_s_is_for_the_host_that_the_target_names(host: str, tmp_path: Path) -> None:
    (target,) = parse_targets(
        f"version: 1\ntargets: {{gpu: {{kind: cuda, architectures: [sm_75, sm_87], host: {host!r}}}}}", "targets.yaml"
    )
    variant, _ = build_variant(network(target), target, None, tmp_path)
    machine = "aarch64" if host.startswith("arm") else "x86_64"
    libraries = (variant.library, *variant.runtime_libraries)
    assert [path.name for path in libraries[1:]] == ["libtvm_runtime.so", "libtvm_runtime_cuda.so"]
    assert {read_elf_facts(path).machine for path in libraries} == {machine} == {variant.requires.machine}
    assert (list_machine_code(variant.library), list_ptx(variant.library)) == (("sm_75", "sm_87"), ("sm_87",))


@pytest.mark.slow
def test_launches_and_resources_of_every_function_are_known(tmp_path: Path) -> None:
    variant, _ = build_variant(network(), TARGET, None, tmp_path)
    assert variant.gpu is not None and re.fullmatch(r"nvcc 13\.\d+\.\d+", variant.gpu.toolkit)
    assert len({function.name for function in variant.gpu.functions}) == len(variant.gpu.functions) >= 2
    for function in variant.gpu.functions:
        assert [code.architecture for code in function.code] == ["sm_80", "sm_90"]
        assert all(0 < code.registers <= 255 for code in function.code)
        assert 32 <= math.prod(function.block) <= 1024 and min(function.grid) >= 1
    assert any(code.shared_bytes for function in variant.gpu.functions for code in function.code)


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (build_variant(network(), TARGET, None, tmp_path / name)[0] for name in ("one", "two"))
    assert first.library.read_bytes() == second.library.read_bytes()
    assert first.gpu == second.gpu


@pytest.mark.slow
def test_a_function_that_takes_more_than_an_architecture_has_is_an_error_that_names_kernel_and_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(GPU_ARCHITECTURES["sm_90"], registers_per_block=1024)
    monkeypatch.setitem(GPU_ARCHITECTURES, "sm_90", small)
    with pytest.raises(CompileError, match=r"(matmul|softmax)\w* cannot be launched on sm_90: \w+: \d+ threads of"):
        build_variant(network(), TARGET, None, tmp_path)


@pytest.mark.slow
def test_a_library_without_ptx_of_the_newest_architecture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvmbridge.codegen.list_ptx", lambda _library: ("sm_80",))
    with pytest.raises(CompileError, match="holds no PTX of sm_90, which newer GPUs need"):
        build_variant(network(), TARGET, None, tmp_path)


def test_what_ptxas_does_not_speak_of_is_said_to_be_unchecked(caplog: pytest.LogCaptureFixture) -> None:
    silent = GpuFunction("dense_kernel", "dense", (1, 1, 1), (32, 1, 1), 0, (MachineCode("sm_80", 32, 0, 0, 0, 0),))
    cuda.say_unchecked(GpuBuild("nvcc 13.0.88", (silent,)), TARGET)
    assert [record.getMessage() for record in caplog.records] == [
        "nvcc 13.0.88 does not say what 1 of 1 functions take: their registers and shared memory are unchecked"
    ]


@pytest.mark.slow
def test_the_fat_binary_reader_agrees_with_nvcc(tmp_path: Path) -> None:
    source, output = tmp_path / "k.cu", tmp_path / "k.fatbin"
    source.write_text('extern "C" __global__ void k(float *x) { x[threadIdx.x] *= 2; }')
    generate = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    subprocess.run([require_nvcc(), "--fatbin", *generate, "-o", str(output), str(source)], check=True)
    assert parse_machine_code(output.read_bytes()) == ("sm_80", "sm_86")
    assert parse_ptx(output.read_bytes()) == ("sm_90",)


def test_an_architecture_that_nvcc_does_not_know_is_an_error_that_lists_those_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "sm_90" in nvcc_architectures(require_nvcc())
    monkeypatch.setattr(cuda, "nvcc_architectures", lambda _nvcc: ("sm_80",))
    with pytest.raises(ToolchainError, match="makes no code for sm_90; it knows sm_80"):
        build_variant(network(), TARGET, None, tmp_path)


def test_a_missing_nvcc_is_an_error_that_names_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ToolchainError, match="no nvcc on this machine") as caught:
        require_nvcc()
    assert "pip install 'tvmbridge[cuda]'" in str(caught.value.hint)


def test_nvcc_of_nvidia_s_packages_is_found_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    found = find_nvcc(lambda name: None if name.startswith("/usr/local") else shutil.which(name), os.environ)
    assert found == str(program)


def test_a_missing_host_compiler_is_an_error_that_names_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ToolchainError, match="no C compiler") as caught:
        cuda.find_host_compiler()
    assert "gcc" in str(caught.value.hint)
