"""Compiles one tuning candidate for a GPU in this process, which has the GPU's driver or stand-ins for it.

A process of its own for each, as whole variants get, would import TVM each time, for longer than it compiles.
"""

from __future__ import annotations

from pathlib import Path

import tvm
import tvm_ffi

from tvmbridge.codegen.compile import generate_code
from tvmbridge.codegen.cuda import require_nvcc
from tvmbridge.codegen.cuda_worker import compile_fatbin
from tvmbridge.codegen.link import find_linker, link
from tvmbridge.errors import ToolchainError
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target


def compile_candidate(module: tvm.IRModule, target: Target, architectures: tuple[str, ...], library: Path) -> None:
    """Generate code and link it into `library`, with machine code for these architectures.

    ToolchainError where a tool is missing, CompileError where one fails.
    """
    if tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise ToolchainError("TVM did not load its CUDA runtime library, so it would embed source only")
    nvcc, linker = require_nvcc(), find_linker(target.machine)
    tvm_ffi.register_global_func(
        "tvm_callback_cuda_compile", lambda code: compile_fatbin(nvcc, code, architectures), override=True
    )
    generate_code(module, tvm_target(target), library, lambda output, objects: link(linker, objects, output))
