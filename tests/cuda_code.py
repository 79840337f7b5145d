"""CUDA source of one scheduled function, and what nvcc makes of it: PTX, and the resources of the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import tvm

from tvmbridge.codegen.cuda import require_nvcc
from tvmbridge.errors import ToolchainError
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target


def nvcc_or_skip() -> str:
    """The path of nvcc; where there is none, the test is counted as not run."""
    try:
        return require_nvcc()
    except ToolchainError as exc:
        pytest.skip(f"NOT RUN: needs nvcc: {exc.hint}")


def cuda_source(function: tvm.tirx.PrimFunc, target: Target) -> str:
    """The CUDA source of one scheduled function."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    library = machine_code(module, tvm_target(target)).mod
    found = [library]
    for each in found:
        found += each.imports
    (source,) = (each.inspect_source() for each in found if each.kind == "cuda")
    return source


def ptx(source: str, architecture: str, *options: str) -> str:
    """PTX for one architecture."""
    return _nvcc(source, "-ptx", f"-arch={architecture.replace('sm', 'compute')}", *options)[0]


def spilled_bytes(source: str, architecture: str) -> int:
    """Bytes of local memory that the machine code stores registers in and loads them from, all kernels together."""
    report = _nvcc(source, "-cubin", f"-arch={architecture}", "-Xptxas", "-v")[1]
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert found, report
    return sum(map(int, found))


def _nvcc(source: str, *options: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "kernel.cu"), Path(folder, "output")
        path.write_text(source)
        done = subprocess.run(
            [nvcc_or_skip(), "-O3", *options, "-o", str(output), str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return output.read_bytes().decode(errors="replace"), done.stdout + done.stderr
