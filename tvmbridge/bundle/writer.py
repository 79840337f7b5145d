"""write_bundle: model facts, variants, weights and log into one file, deterministic and atomic."""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tvmbridge.bundle import manifest as format_
from tvmbridge.bundle.archive import PlannedMember, plan_archive
from tvmbridge.bundle.dtypes import ELEMENT_BYTES, numpy_dtype
from tvmbridge.bundle.manifest import Manifest, MemberEntry, ModelFacts, VariantEntry, WeightEntry
from tvmbridge.bundle.variant import BuiltVariant
from tvmbridge.errors import BundleFormatError, OutputError
from tvmbridge.signature import ModelSignature
from tvmbridge.version import PROGRAM


@dataclass(frozen=True)
class Content:
    """The bytes of one member and their checksums; large ones are a view of the array that holds them."""

    data: bytes | memoryview
    sha256: str
    crc32: int


def write_bundle(
    path: str | os.PathLike[str],
    *,
    model: ModelFacts,
    signature: ModelSignature,
    variants: Sequence[BuiltVariant],
    log: bytes | None = None,
) -> None:
    """Write a bundle: the same arguments give the same bytes, and `path` changes at the end or not at all.

    log: content of the tuning log that was used, if any.
    Weights are streamed from the arrays; a weight that several variants use is written once.
    Raises OutputError when the file cannot be written, BundleFormatError when a limit of the format is passed.
    """
    target = Path(path)
    contents: dict[str, Content] = {}
    try:
        entries = tuple(_describe_variant(variant, contents) for variant in variants)
    except OSError as exc:
        raise OutputError(f"{target} is not written: a compiled library cannot be read: {exc}") from exc
    if log is not None:
        contents[format_.LOG_NAME] = _measure(log)
    manifest = Manifest(
        format=format_.FORMAT,
        version=format_.VERSION,
        created_by=PROGRAM,
        model=model,
        signature=signature,
        variants=entries,
        members={name: MemberEntry(content.sha256, len(content.data)) for name, content in contents.items()},
        log=format_.LOG_NAME if log is not None else None,
    )
    text = format_.render_manifest(manifest)
    # What the reader would refuse is never written.
    if len(text) > format_.MAX_MANIFEST_BYTES:
        raise BundleFormatError(
            f"{target} is not written: its manifest has {len(text)} bytes; "
            f"at most {format_.MAX_MANIFEST_BYTES} are allowed"
        )
    format_.parse_manifest(text, str(target))
    ordered = {format_.MANIFEST_NAME: _measure(text), **dict(sorted(contents.items()))}
    planned, ending = plan_archive((name, len(content.data), content.crc32) for name, content in ordered.items())
    _replace_file(target, planned, ordered, ending)


def _describe_variant(variant: BuiltVariant, contents: dict[str, Content]) -> VariantEntry:
    """The manifest's entry of a variant; its members are added to `contents`."""
    target = variant.target
    library = f"variants/{target.name}/model.so"
    contents[library] = _measure(Path(variant.library).read_bytes())
    runtime_libraries = []
    for path in variant.runtime_libraries:
        content = _measure(Path(path).read_bytes())
        member = f"runtime/{content.sha256[:16]}/{Path(path).name}"
        contents.setdefault(member, content)
        runtime_libraries.append(member)
    return VariantEntry(
        name=target.name,
        kind=target.kind,
        triple=target.triple,
        cpu=target.cpu,
        features=tuple(target.features),
        cores=target.cores,
        architectures=tuple(target.architectures),
        requires=variant.requires,
        tvm=variant.tvm,
        tvm_ffi=variant.tvm_ffi,
        library=library,
        runtime_libraries=tuple(runtime_libraries),
        weights=tuple(_describe_weight(weight, contents) for weight in variant.weights),
        kernels=variant.kernels,
        tuned_kernels=variant.tuned_kernels,
        accuracy=variant.accuracy,
        unverified_because=variant.unverified_because,
        latency_us=variant.latency_us,
    )


def _describe_weight(weight: np.ndarray[Any, Any], contents: dict[str, Content]) -> WeightEntry:
    name = weight.dtype.name
    if name not in ELEMENT_BYTES:
        raise ValueError(f"a weight of dtype {name} has no place in a bundle; allowed: {', '.join(ELEMENT_BYTES)}")
    # Copies only what is strided or big-endian.
    plain = np.ascontiguousarray(weight, dtype=numpy_dtype(name)).reshape(-1)
    content = _measure(plain.view(np.uint8).data)
    member = f"weights/sha256-{content.sha256}"
    contents.setdefault(member, content)
    return WeightEntry(member=member, dtype=name, shape=weight.shape)


def _measure(data: bytes | memoryview) -> Content:
    return Content(data, hashlib.sha256(data).hexdigest(), zlib.crc32(data))


def _replace_file(target: Path, planned: Sequence[PlannedMember], contents: dict[str, Content], ending: bytes) -> None:
    """Write a temporary file beside the target, on the same file system, and move it there when it is whole."""
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder", hint="give the name of a file in it")
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        # Mode x: never through a link or into a file that somebody else put there.
        with open(temporary, "xb") as stream:
            try:
                _write_members(stream, planned, contents, ending)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)
    except OSError as exc:
        raise OutputError(f"cannot write {target}: {exc.strerror or exc}", hint=_suggest_cure(exc, target)) from exc


def _write_members(
    stream: BinaryIO, planned: Sequence[PlannedMember], contents: dict[str, Content], ending: bytes
) -> None:
    for member in planned:
        stream.write(member.header)
        stream.write(contents[member.name].data)
    stream.write(ending)
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _suggest_cure(exc: OSError, target: Path) -> str:
    if isinstance(exc, FileNotFoundError):
        return f"make the folder first: mkdir -p {target.parent}"
    if isinstance(exc, PermissionError):
        return f"choose a folder that you may write to, or change the permissions of {target.parent}"
    return "free some space, or write to another disk"
