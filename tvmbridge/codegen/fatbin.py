"""Which GPU architectures a library holds machine code and PTX for, read from the CUDA fat binaries inside it.

The layout is NVIDIA's, unpublished but stable since CUDA 4: a header (magic, version, header size, size), then entries
(kind, version, header size, size, …, architecture at byte 28). Checked against what nvcc 13.0 writes.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCHITECTURE_OFFSET = 28
_PTX, _MACHINE_CODE = 1, 2


def list_machine_code(library: Path) -> tuple[str, ...]:
    """The architectures, as ("sm_80", "sm_90"), for which some fat binary in the file holds machine code."""
    return parse_machine_code(library.read_bytes())


def parse_machine_code(data: bytes) -> tuple[str, ...]:
    """`list_machine_code` of a library's bytes; damaged fat binaries count for nothing."""
    return _parse(data, _MACHINE_CODE)


def list_ptx(library: Path) -> tuple[str, ...]:
    """The architectures, as ("sm_90",), for which some fat binary in the file holds PTX."""
    return parse_ptx(library.read_bytes())


def parse_ptx(data: bytes) -> tuple[str, ...]:
    """`list_ptx` of a library's bytes; damaged fat binaries count for nothing."""
    return _parse(data, _PTX)


def _parse(data: bytes, wanted: int) -> tuple[str, ...]:
    found: set[int] = set()
    start = data.find(_MAGIC)
    while start >= 0:
        if start + _HEADER.size <= len(data):
            _, _, header_size, size = _HEADER.unpack_from(data, start)
            position = start + header_size
            end = min(position + size, len(data))
            while position + _ARCHITECTURE_OFFSET + 4 <= end:
                kind, _, entry_header, entry_size = _ENTRY.unpack_from(data, position)
                if entry_header < _ARCHITECTURE_OFFSET + 4:
                    break
                if kind == wanted:
                    found.add(struct.unpack_from("<I", data, position + _ARCHITECTURE_OFFSET)[0])
                position += entry_header + entry_size
        start = data.find(_MAGIC, start + 4)
    return tuple(f"sm_{number}" for number in sorted(found))
