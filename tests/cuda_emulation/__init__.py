"""A CUDA device emulated on the CPU: CUDA variants are built, run, verified and tuned where there is no GPU.

It is a folder like a CUDA toolkit's (`make_toolkit`) and an environment (`emulated_environment`) in which any program
finds it: an `nvcc` that compiles TVM's CUDA source for this host, a `libcuda.so.1` and a `libcudart.so` that run it,
and an `nvidia-smi`. A kernel runs with real threads, barriers and shared memory (see block.h), and what CUDA forbids
or leaves undefined is an error: too large blocks or shared memory, accesses outside of allocations, shared arrays
overrun, barriers that not all threads reach. What it does not have are registers: nothing says here what spills. Its
times are no GPU's; its name, and TVMBRIDGE_EMULATED=1, mark them in bundles and logs. It needs g++ and an x86-64.

    python -m tests.cuda_emulation model.onnx                # build for cuda:sm_80, run, compare with ONNX Runtime
    python -m tests.cuda_emulation model.onnx --trace        # and print every launch
    python -m tests.cuda_emulation -- COMMAND ARGUMENT…      # any program: -- tvmbridge build … --target cuda:sm_80

Programs that make kernels of their own need nothing more: `-- python program.py` with a TIR schedule built for tvm's
target {"kind": "cuda", "arch": "sm_80"} runs on `tvm.cuda(0)` once `tvm_callback_cuda_compile` is
`tests.cuda_emulation.compile_for_tvm`.

The environment sets the device up: CUDA_EMULATION_CAPABILITY (8.0), CUDA_EMULATION_ORDER of the threads of a block
(forward, backward, random: a missing barrier shows), CUDA_EMULATION_THREADS of the host, CUDA_EMULATION_MEMORY_BYTES,
CUDA_EMULATION_TRACE=1, CUDA_EMULATION_DISTURB=1 (another thread allocates whenever a stream begins to be captured).
Shared and new device memory hold NaNs. Work that is asked of a stream is done when the program waits for it, so that
what is read or changed too early shows.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from filelock import FileLock

HERE = Path(__file__).resolve().parent
DEVICE_NAME = "Emulated CUDA device"
_KEPT = HERE.parents[1] / "build" / "cuda-emulation"
_DRIVER_SOURCES = ("settings", "memory", "queue", "block", "launch", "driver")
_NOT_SUPPORTED = 801


def make_toolkit(folder: Path = _KEPT) -> Path:
    """The emulated toolkit, built in a folder of its own unless these sources have been built there before."""
    sources = [Path(__file__), *sorted(path for path in HERE.rglob("*") if path.suffix in (".cpp", ".h"))]
    digest = hashlib.sha256("\0".join([sys.executable, *(path.read_text() for path in sources)]).encode()).hexdigest()
    toolkit = folder / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / "lock")):
        if not toolkit.exists():
            with tempfile.TemporaryDirectory(dir=folder) as staged:
                made = Path(staged, "toolkit")
                _build(made)
                made.rename(toolkit)
    return toolkit


def emulated_environment(toolkit: Path, **settings: str) -> dict[str, str]:
    """This process's environment, in which programs see the emulated device. settings: CUDA_EMULATION_… variables."""

    def before(name: str, *folders: Path) -> str:
        return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get(name)]))

    tests, root = HERE.parents[:2]
    return {
        **os.environ,
        "PATH": before("PATH", toolkit / "bin"),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", toolkit / "lib"),
        "PYTHONPATH": before("PYTHONPATH", root, tests),
        "CUDA_HOME": str(toolkit),
        "CUDA_EMULATION_DRIVER": str(toolkit / "lib" / "libcuda.so.1"),
        "CUDA_EMULATION_CACHE": str(toolkit.parent / "kernels"),
        "TVMBRIDGE_EMULATED": "1",
        **settings,
    }


def run_emulated(
    command: list[str], *, timeout_s: float = 600, check: bool = True, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with the emulated device; its output as text. settings: CUDA_EMULATION_… variables."""
    environment = emulated_environment(make_toolkit(), **settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


def compile_for_tvm(code: str) -> bytes:
    """For `tvm_callback_cuda_compile`: CUDA source → what the emulated driver loads. In the emulated environment."""
    from tvmbridge.codegen.cuda import require_nvcc
    from tvmbridge.codegen.cuda_worker import compile_fatbin

    return compile_fatbin(require_nvcc(), code, ("sm_80",))


def _build(toolkit: Path) -> None:
    programs, libraries = toolkit / "bin", toolkit / "lib"
    programs.mkdir(parents=True)
    libraries.mkdir()
    for name in ("nvcc", "nvidia_smi"):
        program = programs / name.replace("_", "-")
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{HERE / name}.py" "$@"\n')
        program.chmod(0o755)
    needed, symbols = _wanted_by_tvm()
    runtime = next(name for name in needed if name.startswith("libcudart.so"))
    assert runtime == "libcudart.so.13", f"the emulated runtime is of CUDA 13, TVM wants {runtime}"
    driver = libraries / "libcuda.so.1"
    _link(driver, _DRIVER_SOURCES, [name for name in symbols if re.match("cu[A-Z]", name)])
    script = libraries / "libcudart.map"
    script.write_text(f"{runtime} {{ global: *; }};\n")
    versioned = [f"-Wl,--version-script={script}", str(driver)]
    _link(libraries / runtime, ("runtime",), [name for name in symbols if re.match("cuda[A-Z]", name)], versioned)


def _wanted_by_tvm() -> tuple[list[str], list[str]]:
    """The libraries and the symbols that TVM's CUDA runtime library wants of others."""
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.origin is not None
    with Path(spec.origin).parent.joinpath("lib", "libtvm_runtime_cuda.so").open("rb") as file:
        elf = ELFFile(file)
        needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
        symbols = elf.get_section_by_name(".dynsym").iter_symbols()
        return needed, [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"]


def _link(library: Path, sources: tuple[str, ...], wanted: list[str], extra: list[str] | None = None) -> None:
    """A shared library of these sources, in which everything else that is wanted says that it is not emulated."""
    with tempfile.TemporaryDirectory() as folder:
        objects = [_compile(HERE / f"{name}.cpp", Path(folder)) for name in sources]
        listed = _run(["nm", "--defined-only", "--extern-only", "--format=posix", *map(str, objects)])
        missing = sorted(set(wanted) - {line.split()[0] for line in listed.splitlines() if " " in line})
        stubs = Path(folder, "missing.cpp")
        stubs.write_text(
            '#include "device.h"\nextern "C" {\n'
            + "".join(
                f'int {name}() {{ emulation::complain("{name} is not emulated"); return {_NOT_SUPPORTED}; }}\n'
                for name in missing
            )
            + "}\n"
        )
        objects.append(_compile(stubs, Path(folder)))
        soname = f"-Wl,-soname,{library.name}"
        _run(["g++", "-shared", soname, "-o", str(library), *map(str, objects), *(extra or []), "-lpthread", "-ldl"])


def _compile(source: Path, folder: Path) -> Path:
    made = folder / f"{source.stem}.o"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    _run(["g++", "-std=c++17", "-O2", *warnings, "-fPIC", "-I", str(HERE), "-c", str(source), "-o", str(made)])
    return made


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the emulated CUDA device cannot be built: {' '.join(command)}: {done.stderr[-3000:]}")
    return done.stdout
