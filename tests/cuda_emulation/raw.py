"""One hand-written kernel on the emulated device, through the driver's interface alone, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import emulated_environment, make_toolkit

_TO_DEVICE, _TO_HOST = 1, 2
_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass(frozen=True)
class Ran:
    """code: the first error of the launch or of waiting for it, 0 without. said: what the device complained of."""

    code: int
    arrays: Mapping[str, np.ndarray]
    said: str


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


def compile_source(source: str, folder: Path, architectures: Sequence[str] = ("sm_80",)) -> bytes:
    """The fat binary that the emulated nvcc makes; AssertionError with its complaint where it makes none."""
    text, made = folder / "kernels.cu", folder / "kernels.fatbin"
    text.write_text(source)
    newest = architectures[-1].removeprefix("sm_")
    wanted = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in architectures]
    wanted.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    toolkit = make_toolkit()
    command = [str(toolkit / "bin" / "nvcc"), "--fatbin", "-O3", "--threads=0", *wanted, "-o", str(made), str(text)]
    done = subprocess.run(command, env=emulated_environment(toolkit), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made.read_bytes()


def run_kernel(
    source: str,
    *,
    arrays: Mapping[str, np.ndarray],
    grid: Sequence[int] = (1, 1, 1),
    block: Sequence[int] = (32, 1, 1),
    shared_bytes: int = 0,
    **settings: str,
) -> Ran:
    """Run the kernel "k" of a source on these arrays, one argument each. settings: CUDA_EMULATION_… variables."""
    with tempfile.TemporaryDirectory(prefix="cuda-emulation-") as name:
        folder = Path(name)
        (folder / "image").write_bytes(compile_source(source, folder))
        np.savez(folder / "in.npz", **arrays)
        request = {"grid": list(grid), "block": list(block), "shared_bytes": shared_bytes}
        (folder / "request.json").write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "tests.cuda_emulation.raw", name],
            env=emulated_environment(make_toolkit(), **settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with np.load(folder / "out.npz") as made:
            results = {key: made[key] for key in made.files}
    return Ran(int(done.stdout), results, done.stderr)


def main(folder: Path) -> int:
    """Do what the folder's request says; print the error's number and leave the arrays beside it."""
    request = json.loads((folder / "request.json").read_text())
    driver, runtime = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcudart.so.13")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    image = (folder / "image").read_bytes()
    if code := driver.cuModuleLoadData(ctypes.byref(module), image):
        print(code)
        np.savez(folder / "out.npz")
        return 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"k") == 0
    if request["shared_bytes"] > 48 << 10:
        driver.cuFuncSetAttribute(function, _DYNAMIC_SHARED_BYTES, request["shared_bytes"])
    with np.load(folder / "in.npz") as given:
        arrays = {name: np.ascontiguousarray(given[name]) for name in given.files}
    pointers = []
    for array in arrays.values():
        pointer = ctypes.c_void_p()
        assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        copy(runtime, pointer, array.ctypes.data_as(ctypes.c_void_p), array.nbytes, _TO_DEVICE)
        pointers.append(pointer)
    parameters = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(pointer) for pointer in pointers))
    config = LaunchConfig((ctypes.c_uint * 3)(*request["grid"]), (ctypes.c_uint * 3)(*request["block"]))
    config.shared_bytes = request["shared_bytes"]
    code = driver.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None)
    code = code or runtime.cudaStreamSynchronize(None)
    if not code:
        for array, pointer in zip(arrays.values(), pointers, strict=True):
            copy(runtime, array.ctypes.data_as(ctypes.c_void_p), pointer, array.nbytes, _TO_HOST)
    np.savez(folder / "out.npz", **arrays)
    print(code)
    return 0


def copy(runtime: ctypes.CDLL, to: ctypes.c_void_p, source: ctypes.c_void_p, size_bytes: int, kind: int) -> None:
    """cudaMemcpyAsync on the default stream, of memory that is not pinned: it is done when this returns."""
    assert runtime.cudaMemcpyAsync(to, source, ctypes.c_size_t(size_bytes), kind, None) == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
