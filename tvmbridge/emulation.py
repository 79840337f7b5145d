"""Whether this process runs under emulation: its times then say nothing of the machine that its code is for."""

from __future__ import annotations

import os
import sys

SAID_BY_HAND = "TVMBRIDGE_EMULATED"  # 1 in the environment: what nothing here can find out
_EXECUTABLE_HEADER_BYTES = 20


def is_emulated() -> bool:
    """Whether another program interprets this process's instructions (qemu-user and its kin), or a whole machine's.

    User-mode emulation is seen for certain where /proc is mounted. Of emulated machines only those are known that say
    so in /proc/cpuinfo; of one that poses as a real CPU the user has to say so, with TVMBRIDGE_EMULATED=1.
    """
    if os.environ.get(SAID_BY_HAND) == "1":
        return True
    return _is_interpreted() or names_emulator(_read("/proc/cpuinfo", 1 << 20).decode(errors="replace"))


def _is_interpreted() -> bool:
    # An emulator answers for /proc/self, but the kernel knows whose code really runs: a program for another machine.
    running = elf_machine(_read("/proc/thread-self/exe", _EXECUTABLE_HEADER_BYTES))
    own = elf_machine(_read(os.path.realpath(sys.executable), _EXECUTABLE_HEADER_BYTES))
    own = own or elf_machine(_read("/proc/self/exe", _EXECUTABLE_HEADER_BYTES))
    return None not in (running, own) and running != own


def elf_machine(header: bytes) -> tuple[int, int] | None:
    """Class and machine of an ELF file from its first 20 bytes: (2, 183) for 64-bit ARM; None for what is none."""
    if len(header) < _EXECUTABLE_HEADER_BYTES or not header.startswith(b"\x7fELF"):
        return None
    return header[4], int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")


def names_emulator(cpuinfo: str) -> bool:
    """Whether a /proc/cpuinfo is that of QEMU without hardware virtualisation, where that shows its own CPU.

    On ARM that is `max`: no implementer, and the part that QEMU's documentation gives it.
    """
    split = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {(name.strip(), value.strip()) for name, _, value in split}
    on_arm = fields >= {("CPU implementer", "0x00"), ("CPU part", "0x051")}
    return on_arm or any(name == "model name" and value.startswith("QEMU TCG") for name, value in fields)


def names_emulated_gpu(name: str) -> bool:
    """Whether a CUDA device calls itself emulated."""
    return name.startswith("Emulated ")


def _read(path: str, size_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size_bytes)
    except OSError:
        return b""
