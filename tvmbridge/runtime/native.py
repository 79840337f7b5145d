"""TVM's runtime and compiled libraries in this process: each loaded once, because loading twice registers twice."""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import tvm_ffi

from tvmbridge.bundle import Bundle, VariantEntry
from tvmbridge.cache import cache_folder
from tvmbridge.cuda_runtime import install_hint, load_cudart, needed_cudart
from tvmbridge.errors import ArtifactError, reason
from tvmbridge.runtime.choose import find_installed_libraries
from tvmbridge.runtime.devices import CUDA_RUNTIME_NAME
from tvmbridge.runtime.library import extracted_library
from tvmbridge.runtime.threads import limit_spinning

RUNTIME_NAME = "libtvm_runtime.so"


@dataclass
class _Process:
    """What the dynamic linker has loaded for us; it belongs to the process, and so does this.

    tvm: version of the runtime; None before there is one. libraries: file names of the runtime libraries.
    modules: digest of a compiled library → its module. cuda: TVM's CUDA runtime library.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    tvm: str | None = None
    libraries: set[str] = field(default_factory=set)
    modules: dict[str, tvm_ffi.Module] = field(default_factory=dict)
    cuda: ctypes.CDLL | None = None


_PROCESS = _Process()


def load_variant(bundle: Bundle, variant: VariantEntry) -> tvm_ffi.Module:
    """The module of a variant's library, with the TVM runtime it needs loaded before it; digests are checked first.

    Libraries stay loaded until the process ends: code of an unloaded one might still be on another thread's stack.
    Raises DigestError, or ArtifactError when the linker refuses a library.
    """
    digest = bundle.manifest.members[variant.library].sha256
    # Checked before anything of the bundle is loaded, the runtime library included.
    library = bundle.read_member(variant.library)
    with _PROCESS.lock:
        _load_runtime(bundle, variant)
        if digest not in _PROCESS.modules:
            with extracted_library(library, cache_folder()) as path:
                try:
                    _PROCESS.modules[digest] = tvm_ffi.load_module(str(path))
                except Exception as exc:  # tvm_ffi raises whatever the library's start-up code raises
                    raise ArtifactError(
                        f"{bundle.path}: the library of variant {variant.name} cannot be loaded: {reason(exc)}",
                        hint="if the cache folder is mounted noexec, set TVMBRIDGE_CACHE to another",
                    ) from exc
        return _PROCESS.modules[digest]


def cuda_functions() -> ctypes.CDLL:
    """The library through which libcudart's functions are found, once a CUDA variant is loaded."""
    assert _PROCESS.cuda is not None
    return _PROCESS.cuda


def never_free(*objects: object) -> None:
    """Keep objects, and all that they refer to, beyond the end of the interpreter.

    After an error that stays with a GPU's process, giving back what is on that GPU fails too, and TVM's destructors end
    the process where they fail. An exception refers to what was under way.
    """
    for each in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _load_runtime(bundle: Bundle, variant: VariantEntry) -> None:
    limit_spinning()
    imported = sys.modules.get("tvm")
    if _PROCESS.tvm is None and imported is not None:
        _PROCESS.tvm = imported.__version__
        _PROCESS.libraries.add(RUNTIME_NAME)
    if _PROCESS.tvm not in (None, variant.tvm):
        raise ArtifactError(
            f"{bundle.path}: variant {variant.name} needs TVM {variant.tvm}; this process runs {_PROCESS.tvm} already",
            hint="load the two bundles in two processes",
        )
    members: dict[str, str | None] = {Path(name).name: name for name in variant.runtime_libraries}
    members = members or {name: None for name in (RUNTIME_NAME, *([CUDA_RUNTIME_NAME] * (variant.kind == "cuda")))}
    installed = find_installed_libraries(variant.tvm)
    for name, member in members.items():
        if name in _PROCESS.libraries:
            continue
        # The installed file goes before the bundle's, so that a later `import tvm` finds its own runtime loaded.
        if installed is not None and (installed / name).is_file():
            _load_global(installed / name, str(bundle.path), cuda=name == CUDA_RUNTIME_NAME)
        elif member is not None:
            with extracted_library(bundle.read_member(member), cache_folder()) as path:
                _load_global(path, f"{bundle.path}: {name}", cuda=name == CUDA_RUNTIME_NAME)
        else:
            raise ArtifactError(
                f"{bundle.path}: carries no TVM runtime, and the installed apache-tvm has no {name}",
                hint=f"pip install --force-reinstall apache-tvm=={variant.tvm}",
            )
        _PROCESS.libraries.add(name)
        _PROCESS.tvm = variant.tvm


def _load_global(path: Path, what: str, *, cuda: bool) -> None:
    cudart = needed_cudart(path.read_bytes()) if cuda else None
    if cudart is not None and not load_cudart(cudart):
        raise ArtifactError(f"{what}: needs NVIDIA's {cudart}, which is not on this machine", hint=install_hint(cudart))
    try:
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        _PROCESS.cuda = library if cuda else _PROCESS.cuda
    except OSError as exc:
        missing = "install the GPU's driver" if cuda else None
        raise ArtifactError(
            f"{what}: the runtime library cannot be loaded: {exc}",
            hint=missing or "if the cache folder is mounted noexec, set TVMBRIDGE_CACHE to another",
        ) from exc
