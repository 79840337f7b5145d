"""NVIDIA's CUDA runtime (libcudart), which TVM's CUDA runtime library is linked against: where this machine has it.

The GPU's driver does not bring it. A bundle does not carry it: it is NVIDIA's, and of one size for all bundles.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path


def needed_cudart(library: bytes) -> str | None:
    """The name of the libcudart that a shared library is linked against: "libcudart.so.13"; None for none."""
    match = re.search(rb"libcudart\.so\.[0-9]+(\.[0-9]+)*(?=\0)", library)
    return match[0].decode() if match else None


def load_cudart(name: str) -> bool:
    """Load it into this process, so that what is linked against it finds it; False where this machine does not have it.

    What the process has loaded already, or the dynamic linker finds by itself, goes before NVIDIA's wheel, and that
    before an installed toolkit. Loading it does not start CUDA.
    """
    return any(_loads(path) for path in (name, *_find(name)))


def load_cudart_of_tvm() -> str | None:
    """Load what the installed TVM's CUDA runtime needs, before tvm is imported; what to install where it is missing."""
    spec = importlib.util.find_spec("tvm")
    library = Path(spec.origin or "").parent / "lib" / "libtvm_runtime_cuda.so" if spec is not None else None
    cudart = needed_cudart(library.read_bytes()) if library is not None and library.is_file() else None
    return None if cudart is None or load_cudart(cudart) else install_hint(cudart)


def cudart_folder(name: str) -> str | None:
    """The folder that has it, for the end of another process's loader path; None where no wheel and no toolkit does."""
    return next((str(Path(path).parent) for path in _find(name)), None)


def cudart_major(name: str) -> int:
    """13 for "libcudart.so.13": the CUDA that its driver has to run, at least."""
    return int(name.split(".")[2])


def install_hint(name: str) -> str:
    """What to install where it is missing."""
    return f"pip install 'nvidia-cuda-runtime=={cudart_major(name)}.*'"


def _find(name: str) -> Iterator[str]:
    for folder in _folders():
        for path in (folder / name, *sorted(folder.glob(f"*/lib/{name}"))):
            if path.is_file():
                yield str(path)


def _folders() -> Iterator[Path]:
    # NVIDIA's wheels put it into nvidia/cu13/lib, older ones into nvidia/cuda_runtime/lib.
    spec = importlib.util.find_spec("nvidia")
    for found in spec.submodule_search_locations or () if spec is not None else ():
        yield Path(found)
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(variable)]
    for home in (*homes, "/usr/local/cuda"):
        yield Path(home, "lib64")
        yield Path(home, "lib")


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True
