"""Object files → one shared library, with whichever linker of this machine fits the target."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tvmbridge.errors import CompileError, ToolchainError
from tvmbridge.host import find_zig

_LINK_TIMEOUT_S = 600.0  # zig compiles its C library at first use

# What Debian, and its children, call the packages.
_INSTALL = {
    "x86_64": "apt-get install gcc (or lld), or pip install ziglang",
    "aarch64": "apt-get install gcc-aarch64-linux-gnu (or lld), or pip install ziglang",
}


@dataclasses.dataclass(frozen=True)
class Linker:
    """name: what reports call it; command: its argument list up to the files."""

    name: str
    command: tuple[str, ...]


def find_linker(machine: str) -> Linker:
    """The linker for "x86_64" or "aarch64" code: the C compiler of that machine, ld.lld, or zig.

    ToolchainError says what to install where none is found.
    """
    shared = ("-shared", "-fPIC")
    native = ("cc", "gcc", "clang") if platform.machine() == machine else ()
    compilers = (*native, f"{machine}-linux-gnu-gcc")
    for compiler in compilers:
        if path := shutil.which(compiler):
            return Linker(compiler, (path, *shared))
    if path := shutil.which("ld.lld"):
        emulation = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}[machine]
        return Linker("ld.lld", (path, "-shared", "-m", emulation, "--allow-shlib-undefined"))
    if path := find_zig(shutil.which):
        return Linker("zig", (path, "cc", "-target", f"{machine}-linux-gnu.2.28", *shared))
    raise ToolchainError(f"no linker for {machine} on this machine", hint=_INSTALL[machine])


def link(linker: Linker, objects: Sequence[str], output: str) -> None:
    """Link the object files into a shared library. CompileError carries the linker's own words."""
    # No build id and no paths of this machine: the same objects give the same bytes.
    flag = "--build-id=none" if linker.name == "ld.lld" else "-Wl,--build-id=none"
    command = [*linker.command, flag, "-o", output, *objects]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LINK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CompileError(f"{linker.name} could not link {Path(output).name}: {exc}") from exc
    if done.returncode:
        raise CompileError(f"{linker.name} failed with status {done.returncode}: {done.stderr.strip()[-2000:]}")
