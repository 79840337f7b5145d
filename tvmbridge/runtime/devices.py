"""What `load(device=…)` takes: "cpu", "cuda", "cuda:1"; and what a CUDA variant needs of this machine beside a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tvmbridge.bundle import Bundle, VariantEntry
from tvmbridge.cuda_runtime import cudart_major, install_hint, load_cudart, needed_cudart
from tvmbridge.host import Host

CUDA_RUNTIME_NAME = "libtvm_runtime_cuda.so"


class Device(NamedTuple):
    """Where a session runs. number: of a GPU, in CUDA's order; 0 for the CPU."""

    kind: str
    number: int = 0

    def __str__(self) -> str:
        """ "cpu" or "cuda:1"."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"


def parse_device(text: str) -> Device:
    """The device that "cpu", "cuda" or "cuda:1" names; ValueError for what names none."""
    match = re.fullmatch(r"(cpu)|cuda(?::([0-9]{1,3}))?", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'device={text!r}: "cpu", "cuda" or "cuda:N", N counting from 0')
    return Device("cpu") if match[1] else Device("cuda", int(match[2] or 0))


def why_no_cuda(bundle: Bundle, variant: VariantEntry, host: Host, installed: Path | None) -> str | None:
    """Why TVM's CUDA runtime does not load here, or finds too old a driver; None where nothing is known against it.

    installed: the folder of an installed TVM, for a variant that carries no runtime.
    """
    carried = next((name for name in variant.runtime_libraries if Path(name).name == CUDA_RUNTIME_NAME), None)
    if carried is not None:
        library = bundle.read_member(carried)
    elif installed is not None and (installed / CUDA_RUNTIME_NAME).is_file():
        library = (installed / CUDA_RUNTIME_NAME).read_bytes()
    else:
        return None
    cudart = needed_cudart(library)
    if cudart is None:
        return None
    if host.cuda is not None and int(host.cuda.partition(".")[0]) < cudart_major(cudart):
        needed = f"{cudart_major(cudart)}.0"
        return f"needs a driver for CUDA {needed} or newer; this one is for CUDA {host.cuda}: install a newer driver"
    if not load_cudart(cudart):
        return f"needs NVIDIA's {cudart}, which is not on this machine: {install_hint(cudart)}"
    return None
