"""What a shared library needs from the machine that loads it, read from its ELF headers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from tvmbridge.errors import CompileError

_RELATIVE_RELOCATIONS = (2, 36)  # the first glibc that understands DT_RELR; the linker marks it with a name of its own
_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}


@dataclasses.dataclass(frozen=True)
class ElfFacts:
    """machine: "x86_64" or "aarch64"; glibc: the oldest version it loads with, "2.17"; None where it wants none."""

    machine: str
    glibc: str | None


def read_elf_facts(path: Path) -> ElfFacts:
    """Read a shared library's machine and glibc floor; CompileError where it is no ELF file."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine = elf["e_machine"]
            wanted = {
                aux.name
                for section in elf.iter_sections()
                if isinstance(section, GNUVerNeedSection)
                for _, auxiliaries in section.iter_versions()
                for aux in auxiliaries
            }
    except (ELFError, OSError) as exc:
        raise CompileError(f"{path.name}: the linker's output is no readable ELF library: {exc}") from exc
    if machine not in _MACHINES:
        raise CompileError(f"{path.name}: the linker's output is for {machine}, which no target names")
    versions: list[tuple[int, ...]] = [_RELATIVE_RELOCATIONS] if "GLIBC_ABI_DT_RELR" in wanted else []
    versions += [
        tuple(int(part) for part in name.removeprefix("GLIBC_").split("."))
        for name in wanted
        if re.fullmatch(r"GLIBC_\d+(\.\d+)+", name)
    ]
    return ElfFacts(_MACHINES[machine], ".".join(map(str, max(versions))) if versions else None)
