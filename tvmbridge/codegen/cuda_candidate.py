"""Compiles one tuning candidate for a GPU in this process, which has the GPU's driver or stand-ins for it.

A process of its own for each, as whole variants get, would import TVM each time, for longer than it compiles.
"""

from __future__ import annotations

from pathlib import Path

import tvm

from tvmbridge.codegen.cuda import require_launchable, require_nvcc
from tvmbridge.codegen.cuda_worker import generate_cuda
from tvmbridge.targets import Target


def compile_candidate(module: tvm.IRModule, target: Target, architectures: tuple[str, ...], library: Path) -> None:
    """Generate code and link it into `library`, with machine code for these architectures.

    ToolchainError where a tool is missing; CompileError where one fails, or where one of the architectures could not
    launch the code.
    """
    require_launchable(generate_cuda(module, target, architectures, library, require_nvcc()), architectures)
