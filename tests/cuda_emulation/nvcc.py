"""Stands in for nvcc: CUDA source → machine code of this host, wrapped as a fat binary that the emulated driver loads.

Each kernel is compiled apart and kept, by content, in the folder that CUDA_EMULATION_CACHE names.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from translate import TranslationError, Unit, render_table, translate

HERE = Path(__file__).resolve().parent
_VERSION = "Cuda compilation tools, release 13.0, V13.0.0 (emulated on the CPU)"
_ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
_PTX, _MACHINE_CODE = 1, 2
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI32x")
# Multiply and add are one operation, as nvcc makes them; a kernel's loops are as the schedule wrote them.
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fno-gnu-unique",  # or a library stays loaded when its module is unloaded, and the next one is taken for it
    "-march=native",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
    "-fPIC",
    "-w",
    "-fno-math-errno",
)


def main(arguments: list[str]) -> int:
    """Do what nvcc would, as far as code generation asks for it."""
    if "--version" in arguments:
        print(_VERSION)
        return 0
    if "--list-gpu-code" in arguments:
        print("\n".join(f"sm_{number}" for number in _ARCHITECTURES))
        return 0
    joined = " ".join(arguments)
    wanted = [(kind, int(number)) for kind, number in re.findall(r"code=(sm|compute)_(\d+)", joined)]
    sources = [argument for argument in arguments if argument.endswith(".cu")]
    if "--fatbin" not in arguments or "-o" not in arguments or len(sources) != 1 or not wanted:
        print("error: the emulated nvcc makes fat binaries of one .cu file: --fatbin -gencode=… -o", file=sys.stderr)
        return 1
    try:
        code = compile_kernels(Path(sources[0]).read_text(), max(number for _, number in wanted))
    except (TranslationError, subprocess.CalledProcessError) as exc:
        print(exc.stderr if isinstance(exc, subprocess.CalledProcessError) else exc, file=sys.stderr)
        return 1
    entries = [(_PTX if kind == "compute" else _MACHINE_CODE, number, code) for kind, number in wanted]
    Path(arguments[arguments.index("-o") + 1]).write_bytes(fat_binary(entries))
    return 0


def fat_binary(entries: list[tuple[int, int, bytes]]) -> bytes:
    """The container: (kind, architecture, code) for each entry."""
    body = b"".join(
        _ENTRY.pack(kind, 0x0101, _ENTRY.size, len(code), architecture) + code for kind, architecture, code in entries
    )
    return _HEADER.pack(0xBA55ED50, 1, _HEADER.size, len(body)) + body


def compile_kernels(source: str, architecture: int) -> bytes:
    """A shared library of the kernels of a CUDA source. TranslationError, CalledProcessError."""
    units = translate(source)
    with tempfile.TemporaryDirectory(prefix="cuda-emulation-") as folder:
        table = Unit("table", render_table([unit.kernel for unit in units]))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(_object, unit, architecture, Path(folder)) for unit in (*units, table)]
            objects = [job.result() for job in jobs]
        library = Path(folder, "kernels.so")
        driver = os.environ["CUDA_EMULATION_DRIVER"]
        # Each kernel's source has the functions for float16 that TVM writes in front of them all.
        _run(["g++", "-shared", "-s", "-Wl,-z,muldefs", "-o", str(library), *map(str, objects), driver])
        return library.read_bytes()


def _object(unit: Unit, architecture: int, folder: Path) -> Path:
    command = ["g++", *_FLAGS, f"-D__CUDA_ARCH__={architecture * 10}", "-I", str(HERE), "-I", str(HERE / "include")]
    headers = sorted((HERE / "include").glob("*.h"))
    known = hashlib.sha256("\0".join([unit.source, *command, *(header.read_text() for header in headers)]).encode())
    kept = Path(os.environ["CUDA_EMULATION_CACHE"], f"{known.hexdigest()}.o")
    if not kept.exists():
        made, text = folder / f"{unit.kernel}.o", folder / f"{unit.kernel}.cpp"
        text.write_text(unit.source)
        _run([*command, "-include", "cuda.h", "-c", str(text), "-o", str(made)])
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(f"{kept}.{os.getpid()}.{unit.kernel}")
        staged.write_bytes(made.read_bytes())
        staged.replace(kept)
    return kept


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
