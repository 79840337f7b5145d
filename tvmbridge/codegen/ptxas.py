"""What ptxas says of its machine code (`nvcc -Xptxas -v`) → registers, shared and local memory of each function."""

from __future__ import annotations

import re

from tvmbridge.bundle.gpu_code import MachineCode

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(sm_\d+[af]?)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_ptxas(text: str) -> dict[str, tuple[MachineCode, ...]]:
    """The machine code of each entry function, by the number of the architecture.

    The properties of functions that an entry calls stand between those of entries, and are left out.
    """
    found: dict[str, list[MachineCode]] = {}
    entry, described = ("", ""), ""
    local = (0, 0, 0)
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, local = (match[1], match[2]), (0, 0, 0)
        elif match := _PROPERTIES.search(line):
            described = match[1]
        elif (match := _LOCAL.search(line)) and described == entry[0]:
            local = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _REGISTERS.search(line)) and described == entry[0]:
            shared = _SHARED.search(line)
            code = MachineCode(entry[1], int(match[1]), int(shared[1]) if shared else 0, *local)
            found.setdefault(entry[0], []).append(code)
    return {name: tuple(sorted(codes, key=_number)) for name, codes in found.items()}


def _number(code: MachineCode) -> int:
    return int(code.architecture.removeprefix("sm_").rstrip("af"))
