"""The zip layout of a bundle: stored members, aligned data, nothing between them; planned and parsed without zipfile.

The layout follows from names, sizes and checksums alone, so it is planned before a byte is written, and read strictly:
zipfile would accept prefixes, gaps, comments and overlapping members. Field layout: PKWARE APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvmbridge.bundle.manifest import MANIFEST_NAME, MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_NAME_BYTES, is_member_name
from tvmbridge.errors import BundleFormatError

ALIGNMENT_BYTES = 64  # what the kernels' vector loads assume of weights
PAGE_BYTES = 4096
PAGE_ALIGNED_FROM_BYTES = 65_536  # smaller members would be mostly padding

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END = struct.Struct("<4sHHHHLLH")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK, _END64_MARK, _LOCATOR_MARK = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
)
_DATE = 0x21  # 1980-01-01, the earliest a zip can say
_ATTRIBUTES = (stat.S_IFREG | 0o644) << 16
_UNIX = 3 << 8
_BIG = 0xFFFFFFFF  # a 32-bit field that says: see the zip64 one
_ZIP64_ID = 0x0001
_PADDING_ID = 0xD935  # the alignment field that Android's zipalign writes
_MAX_ENTRIES = MAX_MEMBERS + 2  # the manifest, and its signatures
_MAX_DIRECTORY_BYTES = _MAX_ENTRIES * (_CENTRAL.size + MAX_NAME_BYTES + 32)


@dataclass(frozen=True)
class PlannedMember:
    """A member to be written: its checksum and size, the header that goes before its data, where the data begins."""

    name: str
    size_bytes: int
    crc32: int
    header: bytes
    header_offset: int
    data_offset: int


@dataclass(frozen=True)
class StoredMember:
    """A member found in an archive: `size_bytes` bytes from `data_offset` on. crc32 is what the archive claims."""

    name: str
    size_bytes: int
    crc32: int
    data_offset: int


def alignment_of(size_bytes: int) -> int:
    """The number that divides the data offset of a member of this size."""
    return PAGE_BYTES if size_bytes >= PAGE_ALIGNED_FROM_BYTES else ALIGNMENT_BYTES


def plan_archive(members: Iterable[tuple[str, int, int]]) -> tuple[tuple[PlannedMember, ...], bytes]:
    """Place members, given as (name, size in bytes, CRC-32) in their order; return them and what follows the last."""
    planned = []
    offset = 0
    for name, size_bytes, crc32 in members:
        header = _render_local_header(name, size_bytes, crc32, offset)
        data_offset = offset + len(header)
        planned.append(PlannedMember(name, size_bytes, crc32, header, offset, data_offset))
        offset = data_offset + size_bytes
    return tuple(planned), _render_directory(planned, offset)


def _render_local_header(name: str, size_bytes: int, crc32: int, offset: int) -> bytes:
    zip64 = size_bytes >= _BIG
    extra = struct.pack("<HHQQ", _ZIP64_ID, 16, size_bytes, size_bytes) if zip64 else b""
    alignment = alignment_of(size_bytes)
    padding_bytes = -(offset + _LOCAL.size + len(name) + len(extra)) % alignment
    if padding_bytes:
        # The field takes 6 bytes itself.
        padding_bytes += alignment if padding_bytes < 6 else 0
        extra += struct.pack("<HHH", _PADDING_ID, padding_bytes - 4, alignment) + bytes(padding_bytes - 6)
    short = min(size_bytes, _BIG)
    needed = 45 if zip64 else 20
    fields = (_LOCAL_MARK, needed, 0, 0, 0, _DATE, crc32, short, short, len(name), len(extra))
    return _LOCAL.pack(*fields) + name.encode("ascii") + extra


def _render_directory(planned: list[PlannedMember], offset: int) -> bytes:
    directory = b"".join(map(_render_central_header, planned))
    count, size = len(planned), len(directory)
    zip64 = b""
    if offset >= _BIG or size >= _BIG:
        zip64 = _END64.pack(_END64_MARK, 44, _UNIX | 45, 45, 0, 0, count, count, size, offset)
        zip64 += _LOCATOR.pack(_LOCATOR_MARK, 0, offset + size, 1)
    return directory + zip64 + _END.pack(_END_MARK, 0, 0, count, count, min(size, _BIG), min(offset, _BIG), 0)


def _render_central_header(member: PlannedMember) -> bytes:
    longs = [size for size in (member.size_bytes, member.size_bytes, member.header_offset) if size >= _BIG]
    extra = struct.pack(f"<HH{len(longs)}Q", _ZIP64_ID, 8 * len(longs), *longs) if longs else b""
    needed = 45 if longs else 20
    short = min(member.size_bytes, _BIG)
    lengths = (len(member.name), len(extra), 0)
    fields = (_UNIX | needed, needed, 0, 0, 0, _DATE, member.crc32, short, short, *lengths, 0, 0, _ATTRIBUTES)
    header = _CENTRAL.pack(_CENTRAL_MARK, *fields, min(member.header_offset, _BIG))
    return header + member.name.encode("ascii") + extra


def parse_archive(read_at: Callable[[int, int], bytes], file_bytes: int, source: str) -> tuple[StoredMember, ...]:
    """Check the structure of a bundle of `file_bytes` bytes and find its members.

    read_at: (offset, count) → the bytes there; fewer where the file ends.
    source: the bundle's path, for the messages.
    Raises BundleFormatError.
    """
    try:
        return _parse_members(read_at, file_bytes, source)
    except struct.error as exc:
        raise BundleFormatError(f"{source}: the zip directory is damaged: {exc}") from exc


def _parse_members(read_at: Callable[[int, int], bytes], file_bytes: int, source: str) -> tuple[StoredMember, ...]:
    offset, size, count = _find_directory(read_at, file_bytes, source)
    directory = read_at(offset, size)
    members: list[StoredMember] = []
    names: set[str] = set()
    position = expected = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(directory, position)
        name, size_bytes, header_offset, position = _parse_central_header(directory, position, fields, source)
        if name in names:
            raise BundleFormatError(f"{source}: member {name} is there twice")
        names.add(name)
        if header_offset != expected:
            what = "overlaps the one before it" if header_offset < expected else "is preceded by bytes of no member"
            raise BundleFormatError(f"{source}: member {name} {what}")
        data_offset = _check_local_header(read_at, header_offset, name, size_bytes, fields, source)
        expected = data_offset + size_bytes
        if expected > offset:
            raise BundleFormatError(f"{source}: member {name} reaches beyond its place in the file")
        members.append(StoredMember(name, size_bytes, fields[7], data_offset))
    if position != size or expected != offset:
        raise BundleFormatError(f"{source}: the file holds bytes that belong to no member")
    if not members or members[0].name != MANIFEST_NAME:
        raise BundleFormatError(f"{source}: a zip file, but not a bundle: its first member is not {MANIFEST_NAME}")
    return tuple(members)


def _find_directory(read_at: Callable[[int, int], bytes], file_bytes: int, source: str) -> tuple[int, int, int]:
    """Offset, size and entry count of the central directory."""
    if file_bytes == 0:
        raise BundleFormatError(f"{source}: the file is empty")
    if read_at(0, 4) != _LOCAL_MARK:
        raise BundleFormatError(f"{source}: not a tvmbridge bundle: it does not begin as a zip file does")
    end_offset = file_bytes - _END.size
    end = read_at(end_offset, _END.size) if end_offset > 0 else b""
    if end[:4] != _END_MARK:
        raise BundleFormatError(
            f"{source}: the file is truncated, or something was appended: it does not end as a bundle does",
            hint="copy or build it again",
        )
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack(end)
    if disk or first_disk or here != count or comment:
        raise BundleFormatError(f"{source}: the zip directory names other disks or carries a comment")
    if offset == _BIG or size == _BIG:
        locator_offset = end_offset - _LOCATOR.size
        end_offset = locator_offset - _END64.size
        if end_offset < 0:
            raise BundleFormatError(f"{source}: the zip64 directory is missing")
        locator = _LOCATOR.unpack(read_at(locator_offset, _LOCATOR.size))
        mark, length, _, _, *rest = _END64.unpack(read_at(end_offset, _END64.size))
        if locator != (_LOCATOR_MARK, 0, end_offset, 1) or mark != _END64_MARK or length != 44:
            raise BundleFormatError(f"{source}: the zip64 directory is damaged")
        disk, first_disk, here, total, size, offset = rest
        if disk or first_disk or here != count or total != count:
            raise BundleFormatError(f"{source}: the zip64 directory contradicts the plain one")
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY_BYTES:
        raise BundleFormatError(f"{source}: {count} members in a directory of {size} bytes are more than allowed")
    if offset + size != end_offset:
        raise BundleFormatError(f"{source}: the zip directory is not where the file says")
    return offset, size, count


def _parse_central_header(
    directory: bytes, position: int, fields: tuple[int, ...], source: str
) -> tuple[str, int, int, int]:
    """Name, size in bytes, header offset of a member, and where the next entry of the directory begins."""
    mark, _, _, flags, method, _, _, _, packed, size_bytes, name_length, extra_length, comment, disk = fields[:14]
    attributes, header_offset = fields[15:]
    if mark != _CENTRAL_MARK:
        raise BundleFormatError(f"{source}: the zip directory is damaged")
    position += _CENTRAL.size
    raw_name = directory[position : position + name_length]
    position += name_length
    extra = directory[position : position + extra_length]
    position += extra_length
    name = raw_name.decode("ascii", "backslashreplace")
    if not is_member_name(name) or position > len(directory):
        raise BundleFormatError(f"{source}: member name {name[:80]!r} is not allowed")
    if flags & 1:
        raise BundleFormatError(f"{source}: member {name} is encrypted")
    if method != 0:
        raise BundleFormatError(f"{source}: member {name} is compressed; a bundle stores members as they are")
    if not stat.S_ISREG(attributes >> 16):
        raise BundleFormatError(f"{source}: member {name} is not a plain file")
    if flags or comment or disk:
        raise BundleFormatError(f"{source}: member {name} uses zip features that a bundle has not")
    expects = [field == _BIG for field in (size_bytes, packed, header_offset)]
    if any(expects):
        longs = sum(expects)
        identifier, length, *values = struct.unpack(f"<HH{longs}Q", extra)
        if identifier != _ZIP64_ID or length != 8 * longs:
            raise BundleFormatError(f"{source}: member {name} has a damaged zip64 field")
        found = iter(values)
        size_bytes, packed, header_offset = (
            next(found) if expected else field
            for expected, field in zip(expects, (size_bytes, packed, header_offset), strict=True)
        )
    elif extra:
        raise BundleFormatError(f"{source}: member {name} has an unknown field in the zip directory")
    if packed != size_bytes or size_bytes > MAX_MEMBER_BYTES:
        raise BundleFormatError(f"{source}: member {name} claims {size_bytes} bytes, stored as {packed}")
    return name, size_bytes, header_offset, position


def _check_local_header(
    read_at: Callable[[int, int], bytes], offset: int, name: str, size_bytes: int, central: tuple[int, ...], source: str
) -> int:
    """Where the data begins; the header before it has to say what the directory says."""
    mark, _, flags, method, _, _, crc32, packed, short, name_length, extra_length = _LOCAL.unpack(
        read_at(offset, _LOCAL.size)
    )
    wanted = (_LOCAL_MARK, 0, 0, central[7], min(size_bytes, _BIG), min(size_bytes, _BIG))
    if (mark, flags, method, crc32, packed, short) != wanted:
        raise BundleFormatError(f"{source}: the header of member {name} contradicts the directory")
    name_offset = offset + _LOCAL.size
    if read_at(name_offset, name_length) != name.encode("ascii"):
        raise BundleFormatError(f"{source}: the header of member {name} gives another name")
    data_offset = name_offset + name_length + extra_length
    if data_offset % ALIGNMENT_BYTES:
        raise BundleFormatError(f"{source}: the data of member {name} is not aligned to {ALIGNMENT_BYTES} bytes")
    return data_offset
