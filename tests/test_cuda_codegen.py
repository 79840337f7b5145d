"""CUDA libraries made without a GPU: machine code for every architecture, never source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernels import lower_expression, random_array
from tvm import relax

from tvmbridge.codegen import build_variant, cuda
from tvmbridge.codegen.cuda import nvcc_architectures, require_nvcc
from tvmbridge.codegen.fatbin import list_machine_code, parse_machine_code
from tvmbridge.errors import ToolchainError
from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

TARGET = parse_preset("cuda:sm_80,sm_90")


@pytest.fixture(scope="session")
def requires_nvcc() -> str:
    try:
        return require_nvcc()
    except ToolchainError as exc:
        pytest.skip(f"not run: needs nvcc: {exc.hint}")


def network() -> LoweredModel:
    weights = relax.const(random_array(np.random.default_rng(0), (64, 48), "float32"))
    op = relax.op
    return lower_expression(lambda x: op.nn.softmax(op.nn.relu(op.matmul(x, weights))), [((16, 64), "float32")], TARGET)


@pytest.mark.slow
def test_a_library_holds_machine_code_for_each_architecture_and_no_source(requires_nvcc: str, tmp_path: Path) -> None:
    variant, plans = build_variant(network(), TARGET, None, tmp_path)
    assert list_machine_code(variant.library) == ("sm_80", "sm_90")
    assert b"__global__" not in variant.library.read_bytes()
    assert variant.requires.architectures == ("sm_80", "sm_90")
    assert [path.name for path in variant.runtime_libraries] == ["libtvm_runtime.so", "libtvm_runtime_cuda.so"]
    assert all(plan.template.name == "dlight" for plan in plans)


@pytest.mark.slow
def test_the_fat_binary_reader_agrees_with_nvcc(requires_nvcc: str, tmp_path: Path) -> None:
    source, output = tmp_path / "k.cu", tmp_path / "k.fatbin"
    source.write_text('extern "C" __global__ void k(float *x) { x[threadIdx.x] *= 2; }')
    generate = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    subprocess.run([requires_nvcc, "--fatbin", *generate, "-o", str(output), str(source)], check=True)
    assert parse_machine_code(output.read_bytes()) == ("sm_80", "sm_86")


def test_an_architecture_that_nvcc_does_not_know_is_an_error_that_lists_those_it_does(
    requires_nvcc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "sm_90" in nvcc_architectures(requires_nvcc)
    monkeypatch.setattr(cuda, "nvcc_architectures", lambda _nvcc: ("sm_80",))
    with pytest.raises(ToolchainError, match="makes no code for sm_90; it knows sm_80"):
        build_variant(network(), TARGET, None, tmp_path)


def test_a_missing_nvcc_is_an_error_that_names_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ToolchainError, match="no nvcc on this machine") as caught:
        require_nvcc()
    assert "cuda-nvcc" in str(caught.value.hint)


def test_a_missing_host_compiler_is_an_error_that_names_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ToolchainError, match="no C compiler") as caught:
        cuda.find_host_compiler()
    assert "gcc" in str(caught.value.hint)
