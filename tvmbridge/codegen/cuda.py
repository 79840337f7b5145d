"""CUDA libraries built without a GPU: machine code for each architecture, made by nvcc.

TVM puts only CUDA *source* into a library, without a word, where it cannot load its CUDA runtime, that is wherever the
driver is missing. So the code is generated in a process of its own (`cuda_worker`) that finds stand-ins for the driver
and the CUDA runtime on its loader path: libraries with the same symbols, each of which answers "no device". They exist
for the time of the build and are never shipped.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tvm
from elftools.elf.elffile import ELFFile

from tvmbridge.bundle.gpu_code import GpuBuild, GpuFunction
from tvmbridge.child import child_command, child_environment
from tvmbridge.codegen.launch_limits import find_launch_fault
from tvmbridge.errors import CompileError, ToolchainError, reason
from tvmbridge.host import NVCC_PACKAGES, find_nvcc, parse_nvcc_version, run_command
from tvmbridge.targets import Target

LOGGER = logging.getLogger(__name__)
_COMPILE_TIMEOUT_S = 3600.0
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE and cudaErrorNoDevice


def require_nvcc() -> str:
    """The path of nvcc; else a ToolchainError."""
    if path := find_nvcc(shutil.which, os.environ):
        return path
    raise ToolchainError(
        "no nvcc on this machine: CUDA targets need the CUDA toolkit (not a GPU)",
        hint=f"pip install '{NVCC_PACKAGES}'; or install cuda-nvcc from NVIDIA's repository, and put nvcc on PATH "
        "or set CUDA_HOME",
    )


def find_host_compiler() -> str:
    """The C compiler that nvcc and the stand-in libraries need; else a ToolchainError."""
    for compiler in ("cc", "gcc", "clang"):
        if path := shutil.which(compiler):
            return path
    raise ToolchainError("no C compiler on this machine, which nvcc needs", hint="apt-get install gcc g++")


def nvcc_architectures(nvcc: str) -> tuple[str, ...]:
    """The architectures that this nvcc makes code for: ("sm_75", "sm_80", …). ToolchainError where it does not run."""
    try:
        done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ToolchainError(f"{nvcc} does not run: {reason(exc)}", hint="install the CUDA toolkit again") from exc
    return tuple(re.findall(r"^sm_\d+[a-z]?$", done.stdout, re.MULTILINE))


def compile_cuda_library(module: tvm.IRModule, target: Target, library: Path) -> GpuBuild:
    """Generate, compile and link one CUDA variant, in a child process that has the stand-in driver.

    Returns what the compilers say of its GPU functions. CompileError where one fails, or where a function takes more
    than an architecture of the target has.
    """
    nvcc = require_nvcc()
    known = nvcc_architectures(nvcc)
    unknown = [arch for arch in target.architectures if known and arch not in known]
    if unknown:
        raise ToolchainError(
            f"{nvcc} makes no code for {', '.join(unknown)}; it knows {', '.join(known)}",
            hint="install a CUDA toolkit that does, or take these architectures out of the target",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="tvmbridge-cuda-") as folder:
            report = Path(folder, "report.json")
            done = _run_worker(module, target, library, report, nvcc)
            said = report.read_bytes() if report.exists() else b""
    except subprocess.TimeoutExpired as exc:
        raise CompileError(f"CUDA code generation for {target.name} took over {_COMPILE_TIMEOUT_S:g} s") from exc
    except (OSError, subprocess.SubprocessError) as exc:
        raise CompileError(f"CUDA code generation for {target.name} failed: {reason(exc)}") from exc
    if done.returncode or not said or not library.exists():
        why = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        raise CompileError(f"CUDA code generation failed: {why}")
    built = GpuBuild(_toolkit(nvcc), msgspec.json.decode(said, type=tuple[GpuFunction, ...]))
    require_launchable(built.functions, target.architectures)
    say_unchecked(built, target)
    return built


def _toolkit(nvcc: str) -> str:
    """What bundles say that they were compiled with: "nvcc 13.0.88"."""
    return f"nvcc {parse_nvcc_version(run_command([nvcc, '--version'])) or 'of unknown version'}"


def require_launchable(functions: Sequence[GpuFunction], architectures: Sequence[str]) -> None:
    """CompileError where a function takes more than one of the architectures has."""
    for function in functions:
        for architecture in architectures:
            if fault := find_launch_fault(function, architecture):
                raise CompileError(f"{function.kernel} cannot be launched on {architecture}: {function.name}: {fault}")


def say_unchecked(built: GpuBuild, target: Target) -> None:
    """Warn of functions of which the compilers do not say what they take."""
    silent = [f for f in built.functions if {code.architecture for code in f.code} != set(target.architectures)]
    if silent:
        what = "%s does not say what %d of %d functions take: their registers and shared memory are unchecked"
        LOGGER.warning(what, built.toolkit, len(silent), len(built.functions))


def _run_worker(
    module: tvm.IRModule, target: Target, library: Path, report: Path, nvcc: str
) -> subprocess.CompletedProcess[str]:
    ir, request = report.with_name("module.json"), report.with_name("request.json")
    ir.write_text(tvm.ir.save_json(module))
    paths = {"module": str(ir), "library": str(library), "report": str(report), "nvcc": nvcc}
    request.write_text(json.dumps({**paths, "target": msgspec.to_builtins(target)}))
    return subprocess.run(
        child_command("tvmbridge.codegen.cuda_worker", str(request)),
        env=child_environment(**stand_in_path(report.parent)),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_COMPILE_TIMEOUT_S,
        check=False,
    )


def stand_in_path(folder: Path) -> dict[str, str]:
    """Build the stand-ins below `folder`; what a process needs in its environment to find them before all others.

    ToolchainError where there is no C compiler, CompileError where it fails.
    """
    stand_ins = folder / "stand-ins"
    _build_stand_ins(stand_ins, find_host_compiler())
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(stand_ins), os.environ.get("LD_LIBRARY_PATH")]))}


def cuda_runtime_library() -> Path:
    """TVM's own CUDA runtime library, from the installed package."""
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "lib" / "libtvm_runtime_cuda.so"


def _build_stand_ins(folder: Path, compiler: str) -> None:
    """Build libcuda.so.1 and libcudart.so.N that define what TVM's CUDA runtime library wants of them."""
    folder.mkdir()
    with cuda_runtime_library().open("rb") as file:
        elf = ELFFile(file)
        needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
        symbols = [s.name for s in elf.get_section_by_name(".dynsym").iter_symbols() if s["st_shndx"] == "SHN_UNDEF"]
    for soname in (name for name in needed if name.startswith(("libcuda.so", "libcudart.so"))):
        prefix = "cuda" if soname.startswith("libcudart") else "cu"
        names = [s for s in symbols if re.match(prefix + "[A-Z]", s)]
        source, script = folder / f"{soname}.c", folder / f"{soname}.map"
        source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in names))
        script.write_text(f"{soname} {{ global: *; }};\n")
        versioned = [f"-Wl,--version-script={script}"] if prefix == "cuda" else []
        command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", *versioned, str(source)]
        done = subprocess.run([*command, "-o", str(folder / soname)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{compiler} could not build a stand-in for {soname}: {done.stderr.strip()[-500:]}")
