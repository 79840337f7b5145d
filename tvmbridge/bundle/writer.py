"""write_bundle: model facts, variants, weights and log into one file, deterministic and atomic."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec
import numpy as np

from tvmbridge.atomic_file import replacing
from tvmbridge.bundle import manifest as format_
from tvmbridge.bundle.archive import PlannedMember, plan_archive
from tvmbridge.bundle.attestation import PROVENANCE_NAME, SBOM_NAME, render_provenance, render_sbom
from tvmbridge.bundle.dtypes import ELEMENT_BYTES, numpy_dtype
from tvmbridge.bundle.manifest import Manifest, MemberEntry, ModelFacts, VariantEntry, WeightEntry
from tvmbridge.bundle.reader import Bundle
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
    tools: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a bundle: the same arguments give the same bytes, and `path` changes at the end or not at all.

    log: content of the tuning log that was used, if any. tools: packages that took part in the build → their versions.
    Provenance and a bill of materials are attached.
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
        members=_describe_members(contents),
        log=format_.LOG_NAME if log is not None else None,
    )
    contents[PROVENANCE_NAME] = _measure(render_provenance(manifest, tools))
    contents[SBOM_NAME] = _measure(render_sbom(manifest, tools))
    manifest = msgspec.structs.replace(manifest, members=_describe_members(contents))
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


def rewrite_bundle(bundle: Bundle, path: Path, signature: bytes) -> None:
    """Write an open bundle to `path`, as it is but for its signature.json; the same path replaces it in one step.

    Whoever may read the bundle may read the new one, and nobody else.
    """
    contents = {format_.MANIFEST_NAME: _measure(bundle.manifest_bytes)}
    for name, member in sorted(bundle.manifest.members.items()):
        data = bundle.map_member(name)
        contents[name] = Content(data, member.sha256, zlib.crc32(data))
    contents[format_.SIGNATURE_NAME] = _measure(signature)
    planned, ending = plan_archive((name, len(content.data), content.crc32) for name, content in contents.items())
    _replace_file(path, planned, contents, ending, bundle.status.st_mode & 0o777)


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
        emulated=variant.emulated,
        precision=target.precision,
        cuda_graphs=target.cuda_graphs,
        gpu=variant.gpu.facts if variant.gpu is not None else None,
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


def _describe_members(contents: Mapping[str, Content]) -> dict[str, MemberEntry]:
    return {name: MemberEntry(content.sha256, len(content.data)) for name, content in contents.items()}


def _measure(data: bytes | memoryview) -> Content:
    return Content(data, hashlib.sha256(data).hexdigest(), zlib.crc32(data))


def _replace_file(
    target: Path,
    planned: Sequence[PlannedMember],
    contents: dict[str, Content],
    ending: bytes,
    mode: int | None = None,
) -> None:
    """Put the whole file in place, or leave what is there as it is; what the system says of it, with a cure.

    mode: of the file; None: what the umask leaves of 0666.
    """
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder", hint="give the name of a file in it")
    try:
        with replacing(target, mode) as stream:
            _write_members(stream, planned, contents, ending)
    except OSError as exc:
        raise OutputError(f"cannot write {target}: {exc.strerror or exc}", hint=_suggest_cure(exc, target)) from exc


def _write_members(
    stream: BinaryIO, planned: Sequence[PlannedMember], contents: dict[str, Content], ending: bytes
) -> None:
    for member in planned:
        stream.write(member.header)
        stream.write(contents[member.name].data)
    stream.write(ending)


def _suggest_cure(exc: OSError, target: Path) -> str:
    if isinstance(exc, FileNotFoundError):
        return f"make the folder first: mkdir -p {target.parent}"
    if isinstance(exc, PermissionError):
        return f"choose a folder that you may write to, or change the permissions of {target.parent}"
    return "free some space, or write to another disk"
