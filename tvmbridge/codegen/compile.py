"""An assembled module → a shared library: TVM's code generation, then the linker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
from tvm.ir.instrument import PassInstrument

from tvmbridge.bundle.gpu_code import GpuBuild
from tvmbridge.codegen.cuda import compile_cuda_library
from tvmbridge.codegen.link import find_linker, link
from tvmbridge.errors import CompileError, TvmBridgeError, is_interrupt, reason
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target


def compile_library(module: tvm.IRModule, target: Target, library: Path) -> GpuBuild | None:
    """Generate code for the target and link it into `library`; of a cuda target, what the compilers say of its code.

    ToolchainError where a tool is missing (looked for before any work is done), CompileError where one fails.
    """
    linker = find_linker(target.machine)
    if target.kind == "cuda":
        return compile_cuda_library(module, target, library)
    generate_code(module, tvm_target(target), library, lambda output, objects: link(linker, objects, output))
    return None


def generate_code(
    module: tvm.IRModule,
    target: tvm.target.Target,
    library: Path,
    link_objects: Callable[[str, list[str]], None],
    instruments: Sequence[PassInstrument] = (),
    *,
    with_graphs: bool = False,
) -> None:
    """Run TVM's code generation and hand its object files to `link_objects(output, objects)`.

    with_graphs: for CUDA: launch kernels in CUDA graphs where that can be.
    """
    try:
        executable = machine_code(module, target, instruments, with_graphs=with_graphs)
        with tempfile.TemporaryDirectory(prefix="tvmbridge-") as workspace:
            executable.export_library(
                str(library),
                fcompile=lambda output, objects, **_: link_objects(output, objects),
                workspace_dir=workspace,
            )
    except TvmBridgeError:
        raise
    except Exception as exc:  # TVM raises many kinds, from C++ and from Python
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        raise CompileError(f"TVM could not generate code: {reason(exc)}") from exc
