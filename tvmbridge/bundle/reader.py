"""open_bundle: checks a bundle's structure and manifest, and gives out members whose digests are right."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tvmbridge.bundle.archive import StoredMember, parse_archive
from tvmbridge.bundle.dtypes import numpy_dtype
from tvmbridge.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE_NAME,
    Manifest,
    VariantEntry,
    parse_manifest,
)
from tvmbridge.errors import BundleFormatError, DigestError


@dataclass(frozen=True)
class _Structure:
    """What a file was found to hold."""

    manifest: Manifest
    manifest_bytes: bytes
    signature_bytes: bytes | None
    members: dict[str, StoredMember]


class Bundle:
    """An open bundle; a context manager. Nothing of it is executed, and no member is read before it is asked for.

    path: where it was opened.
    manifest: what it says about itself, checked. manifest_bytes: the same, as it stands in the file.
    signature_bytes: its `signature.json`, not looked into; None where it is not signed.
    """

    def __init__(self, path: Path, descriptor: int, structure: _Structure) -> None:
        self.path = path
        self.manifest = structure.manifest
        self.manifest_bytes = structure.manifest_bytes
        self.signature_bytes = structure.signature_bytes
        self._descriptor: int | None = descriptor
        self._members = structure.members
        self._pages: np.ndarray[Any, Any] | None = None

    @property
    def status(self) -> os.stat_result:
        """Of the open file, whatever its path leads to by now."""
        return os.fstat(self._open_descriptor())

    def read_member(self, name: str) -> bytes:
        """All bytes of a member, checked: for libraries and logs. Raises DigestError."""
        member = self._members[name]
        data = os.pread(self._open_descriptor(), member.size_bytes, member.data_offset)
        while len(data) < member.size_bytes:
            # One pread gives at most 2 GiB, and nothing once the file has been cut.
            more = os.pread(self._open_descriptor(), member.size_bytes - len(data), member.data_offset + len(data))
            if not more:
                raise DigestError(f"{self.path}: member {name} was cut off while it was read")
            data += more
        self._check_digest(name, data)
        return data

    def map_weights(self, variant: VariantEntry, *, check: bool = True) -> tuple[np.ndarray[Any, Any], ...]:
        """The weights of a variant, in its order: row-major arrays on private pages of the mapped file.

        check: compare their digests; a caller who has done so before, on the same file, may leave it out.
        Unmodified pages are shared with every process that maps the bundle. The arrays stay valid after close().
        Raises DigestError.
        """
        if not variant.weights:
            return ()
        pages = self._map()
        found: dict[str, np.ndarray[Any, Any]] = {}
        weights = []
        for entry in variant.weights:
            if entry.member not in found:
                member = self._members[entry.member]
                found[entry.member] = pages[member.data_offset : member.data_offset + member.size_bytes]
                if check:
                    self._check_digest(entry.member, found[entry.member].data)
            weights.append(found[entry.member].view(numpy_dtype(entry.dtype)).reshape(entry.shape))
        return tuple(weights)

    def map_member(self, name: str) -> memoryview:
        """All bytes of a member on pages of the mapped file, not checked; they stay valid after close()."""
        member = self._members[name]
        return self._map()[member.data_offset : member.data_offset + member.size_bytes].data

    def check_members(self) -> None:
        """Compare every member's digest; raises DigestError."""
        for name in self.manifest.members:
            self._check_digest(name, self.map_member(name))

    def close(self) -> None:
        """Close the file; mapped weights stay valid. Closing twice does nothing."""
        descriptor, self._descriptor, self._pages = self._descriptor, None, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Bundle:
        """The bundle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def __del__(self) -> None:
        """Close the file of a bundle that was forgotten."""
        self.close()

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"the bundle {self.path} is closed")
        return self._descriptor

    def _map(self) -> np.ndarray[Any, Any]:
        """The file, mapped once."""
        descriptor = self._open_descriptor()
        if self._pages is None:
            # ACCESS_COPY: NumPy hands only writable arrays to DLPack, and a write must never reach the file.
            self._pages = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), dtype=np.uint8)
        return self._pages

    def _check_digest(self, name: str, data: bytes | memoryview) -> None:
        if hashlib.sha256(data).hexdigest() != self.manifest.members[name].sha256:
            raise DigestError(
                f"{self.path}: the bytes of member {name} are not those that the manifest promises",
                hint="the file is damaged or was changed: copy or build it again",
            )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and check its structure and its manifest; members are checked when they are read.

    Raises BundleFormatError for what is missing, no bundle, damaged or malformed; NewerVersionError for a newer format.
    """
    source = Path(path)
    try:
        # Non-blocking, so that a named pipe is refused instead of waited for.
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise BundleFormatError(f"{source}: there is no such file", hint="check the path") from exc
    except (OSError, ValueError) as exc:
        raise BundleFormatError(f"{source}: cannot be opened: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        structure = _read_structure(descriptor, str(source))
    except OSError as exc:
        os.close(descriptor)
        raise BundleFormatError(f"{source}: cannot be read: {exc.strerror or exc}") from exc
    except BaseException:
        os.close(descriptor)
        raise
    return Bundle(source, descriptor, structure)


def _read_structure(descriptor: int, source: str) -> _Structure:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise BundleFormatError(f"{source}: is a folder, not a bundle")
    if not stat.S_ISREG(status.st_mode):
        raise BundleFormatError(f"{source}: is not a plain file")

    def read_at(offset: int, count: int) -> bytes:
        return os.pread(descriptor, count, offset)

    members = {member.name: member for member in parse_archive(read_at, status.st_size, source)}

    def take(name: str, most_bytes: int) -> bytes:
        """A member without a digest in the manifest: the archive's checksum has to do."""
        place = members.pop(name)
        if place.size_bytes > most_bytes:
            raise BundleFormatError(f"{source}: {name} has {place.size_bytes} bytes, more than {most_bytes}")
        data = read_at(place.data_offset, place.size_bytes)
        if zlib.crc32(data) != place.crc32:
            raise BundleFormatError(f"{source}: {name} is damaged: its checksum is wrong")
        return data

    text = take(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(text, source)
    signed = manifest.version >= 2 and SIGNATURE_NAME in members
    signature = take(SIGNATURE_NAME, MAX_SIGNATURE_BYTES) if signed else None
    for name in manifest.members.keys() - members.keys():
        raise BundleFormatError(f"{source}: member {name} of the manifest is missing")
    for name, member in members.items():
        if name not in manifest.members:
            raise BundleFormatError(f"{source}: member {name} is not in the manifest")
        promised = manifest.members[name].size_bytes
        if member.size_bytes != promised:
            raise BundleFormatError(
                f"{source}: member {name} has {member.size_bytes} bytes, not the promised {promised}"
            )
    return _Structure(manifest, text, signature, members)
