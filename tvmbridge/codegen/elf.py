"""What a shared library needs from the machine that loads it, read from its ELF headers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from tvmbridge.errors import CompileError

_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}


@dataclasses.dataclass(frozen=True)
class ElfFacts:
    """machine: "x86_64" or "aarch64"; glibc: the newest symbol version it wants, None for none; needed: libraries."""

    machine: str
    glibc: str | None
    needed: tuple[str, ...]


def read_elf_facts(path: Path) -> ElfFacts:
    """Read a shared library's machine, glibc floor and needed libraries; CompileError where it is no ELF file."""
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine = elf["e_machine"]
            dynamic = elf.get_section_by_name(".dynamic")
            needed = tuple(tag.needed for tag in dynamic.iter_tags("DT_NEEDED")) if dynamic else ()
            versions = [
                tuple(int(part) for part in aux.name.removeprefix("GLIBC_").split("."))
                for section in elf.iter_sections()
                if isinstance(section, GNUVerNeedSection)
                for _, auxiliaries in section.iter_versions()
                for aux in auxiliaries
                if aux.name.startswith("GLIBC_") and aux.name[6:7].isdigit()
            ]
    except (ELFError, OSError) as exc:
        raise CompileError(f"{path.name}: the linker's output is no readable ELF library: {exc}") from exc
    if machine not in _MACHINES:
        raise CompileError(f"{path.name}: the linker's output is for {machine}, which no target names")
    glibc = ".".join(str(part) for part in max(versions)) if versions else None
    return ElfFacts(_MACHINES[machine], glibc, needed)
