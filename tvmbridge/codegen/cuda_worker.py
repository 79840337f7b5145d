"""The process that generates one CUDA library, as the request file says that it is given (see `cuda`)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import tvm
import tvm_ffi

from tvmbridge.bundle.gpu_code import GpuFunction
from tvmbridge.codegen.compile import generate_code
from tvmbridge.codegen.launches import launch_reader
from tvmbridge.codegen.link import find_linker, link
from tvmbridge.codegen.ptxas import parse_ptxas
from tvmbridge.errors import CompileError, ToolchainError, TvmBridgeError
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target


def main(request_path: str) -> int:
    """Do what the request file says; 0 when library and report are written, 1 with the reason on standard output."""
    request = json.loads(Path(request_path).read_text())
    target = msgspec.convert(request["target"], Target)
    module = tvm.ir.load_json(Path(request["module"]).read_text())
    try:
        functions = generate_cuda(module, target, target.architectures, Path(request["library"]), request["nvcc"])
    except TvmBridgeError as exc:
        print(exc.message)
        return 1
    Path(request["report"]).write_bytes(msgspec.json.encode(functions))
    return 0


def generate_cuda(
    module: tvm.IRModule, target: Target, architectures: tuple[str, ...], library: Path, nvcc: str
) -> tuple[GpuFunction, ...]:
    """Generate code for these of the target's architectures and link it into `library`, in this process.

    The process has the GPU's driver or stand-ins for it. Returns what the compilers say of the GPU functions.
    ToolchainError where TVM did not load its CUDA runtime or there is no linker, CompileError where a stage fails.
    """
    if tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise ToolchainError("TVM did not load its CUDA runtime library, so it would embed source only")
    linker = find_linker(target.machine)
    functions: list[GpuFunction] = []
    said: list[str] = []

    def compile_source(code: str) -> bytes:
        return compile_fatbin(nvcc, code, architectures, said.append)

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_source, override=True)
    generate_code(
        module,
        tvm_target(target),
        library,
        lambda output, objects: link(linker, objects, output),
        [launch_reader(functions)],
        with_graphs=target.cuda_graphs,
    )
    code = parse_ptxas("\n".join(said))
    return tuple(msgspec.structs.replace(f, code=code.get(f.name, ())) for f in functions)


def compile_fatbin(
    nvcc: str, code: str, architectures: tuple[str, ...], on_said: Callable[[str], None] | None = None
) -> bytes:
    """Compile CUDA source to machine code for each architecture, and PTX of the newest for GPUs to come.

    ptxas keeps functions below round numbers of registers, so that an SM takes more blocks, and spills some for that.
    Where it does, the source is compiled once more with all registers for these. on_said: called with what the
    compilers say of the result (see `ptxas`).
    """
    fatbin, said = _run_nvcc(nvcc, code, architectures)
    spilling = {name for name, codes in parse_ptxas(said).items() if any(each.spills for each in codes)}
    if spilling:
        fatbin, said = _run_nvcc(nvcc, allow_registers(code, spilling), architectures)
    if on_said is not None:
        on_said(said)
    return fatbin


def allow_registers(code: str, functions: Collection[str]) -> str:
    """The source with launch bounds by which one block of each of the functions may have all registers of an SM."""
    names = "|".join(map(re.escape, functions))
    return re.sub(rf"__launch_bounds__\((\d+)\)(?= (?:{names})\()", r"__launch_bounds__(\1, 1)", code)


def _run_nvcc(nvcc: str, code: str, architectures: tuple[str, ...]) -> tuple[bytes, str]:
    """The fat binary, and what the compilers say of it."""
    newest = architectures[-1].removeprefix("sm_")
    generate = [f"-gencode=arch=compute_{a.removeprefix('sm_')},code={a}" for a in architectures]
    generate.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    with tempfile.TemporaryDirectory(prefix="tvmbridge-nvcc-") as folder:
        source, fatbin = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        source.write_text(code)
        # A thread an architecture, which halves the time of two; --split-compile and ptxas -O2 save nothing. lineinfo
        # and other paths of this machine are left out of the result.
        command = [nvcc, "--fatbin", "-O3", "-Xptxas=-v", "--threads=0", *generate, "-o", str(fatbin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"nvcc failed with status {done.returncode}: {_first_errors(done.stderr)}")
        return fatbin.read_bytes(), done.stderr


def _first_errors(output: str) -> str:
    """The lines of nvcc's output that say what is wrong; its end where none does."""
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return "; ".join(errors[:3]) or output.strip()[-500:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
