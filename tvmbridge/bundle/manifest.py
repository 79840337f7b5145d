"""The manifest of a bundle: what it holds, what each variant needs, and the digest of every member."""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from tvmbridge.bundle.bound import BoundValue, find_bound_fault
from tvmbridge.bundle.dtypes import ELEMENT_BYTES
from tvmbridge.bundle.gpu_code import GpuFacts
from tvmbridge.errors import BundleFormatError, NewerVersionError
from tvmbridge.signature import ModelSignature

FORMAT = "tvmbridge-bundle"
VERSION = 2
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "signature.json"  # from version 2 on; the one member that the manifest does not list
LOG_NAME = "tuning.jsonl"
WITHOUT_GRAPHS = "main_without_graphs"  # main of a library with CUDA graphs, each kernel launched by itself
ATTACHMENT_FOLDER = "attachments/"

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_MEMBERS = 65_000
MAX_NAME_BYTES = 255
MAX_SIGNATURE_BYTES = 64 * 1024
MAX_LIBRARY_BYTES = 2**30
MAX_LOG_BYTES = 2**30
MAX_MEMBER_BYTES = 2**40

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VARIANT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The ONNX model a bundle was built from.

    sha256: of the model file and its external data files.
    opset: version of the default ONNX operator set.
    bound: the inputs that were bound to values; from version 2 on.
    """

    name: str
    sha256: str
    opset: int
    bound: tuple[BoundValue, ...] = ()


class Requires(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host must offer to run a variant.

    machine: "x86_64" or "aarch64".
    cpu_features: LLVM names of the CPU features that the code may use, sorted.
    architectures: CUDA: the "sm_NN" the library holds code for, sorted; the newest also as PTX.
    glibc: oldest C library that the shared libraries load with, "2.17"; None where none is linked.
    """

    machine: str
    cpu_features: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    glibc: str | None = None


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a variant's outputs are from the reference's, over all outputs and samples: the worst.

    max_relative: max|a-b| / max|reference| of an output.
    tolerance: limit of max_relative that the variant was held to.
    reference: program and version, "onnxruntime 1.32.0".
    """

    max_absolute: float
    max_relative: float
    cosine: float
    tolerance: float
    reference: str
    samples: int


class WeightEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight of a variant: the member that holds its elements, row-major and little-endian."""

    member: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


class VariantEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One build of the model: for which target, what it needs, which members make it up, how it did.

    runtime_libraries: TVM's runtime in the order to load it; empty: an installed apache-tvm of version `tvm` is used.
    weights: in the order in which the library takes them.
    unverified_because: why `accuracy` is None; None where it is not.
    latency_us: median of one call on the machine it was verified on; None where it was not measured.
    emulated: whether it was verified and measured under emulation: the latency is then no machine's.
    gpu: what its GPU code takes, and what compiled it; None where it has none.
    precision: "float16": products multiply float16, whatever the model says; see docs/targets-yaml.md.
    cuda_graphs: whether its kernels are launched in CUDA graphs, which loading it captures.
    """

    name: str
    kind: Literal["x86", "arm", "cuda"]
    triple: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    architectures: tuple[str, ...]
    requires: Requires
    tvm: str
    tvm_ffi: str
    library: str
    runtime_libraries: tuple[str, ...]
    weights: tuple[WeightEntry, ...]
    kernels: int
    tuned_kernels: int
    accuracy: Accuracy | None = None
    unverified_because: str | None = None
    latency_us: float | None = None
    emulated: bool = False
    precision: Literal["float32", "float16"] = "float32"
    cuda_graphs: bool = False
    gpu: GpuFacts | None = None


class MemberEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Digest and size of one member."""

    sha256: str
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a bundle says about itself.

    members: every member of the archive but the manifest and its signatures, by name.
    log: name of the member that holds the tuning records; None where nothing was tuned.
    """

    format: str
    version: int
    created_by: str
    model: ModelFacts
    signature: ModelSignature
    variants: tuple[VariantEntry, ...]
    members: dict[str, MemberEntry]
    log: str | None = None


class _Head(msgspec.Struct):
    format: str
    version: int
    created_by: str = "an unknown program"


def render_manifest(manifest: Manifest) -> bytes:
    """The manifest as UTF-8 JSON: keys sorted, indented, one final newline; equal manifests give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Decode and check a manifest.

    source: the bundle's path, for the messages.
    Raises BundleFormatError, or NewerVersionError for a version above VERSION.
    """
    # Format and version come first: a newer manifest may differ in every other field.
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleFormatError(f"{source}: manifest.json is damaged or not a bundle's: {exc}") from exc
    if head.format != FORMAT:
        raise BundleFormatError(f"{source}: format is {head.format[:40]!r}, not {FORMAT!r}: not a tvmbridge bundle")
    if head.version > VERSION:
        raise NewerVersionError(
            f"{source}: bundle version {head.version}, written by {head.created_by[:80]}; up to {VERSION} is known",
            hint="pip install --upgrade tvmbridge",
        )
    if head.version < 1:
        raise BundleFormatError(f"{source}: bundle version {head.version} does not exist")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleFormatError(f"{source}: manifest.json is malformed: {exc}") from exc
    fault = find_fault(manifest)
    if fault is not None:
        raise BundleFormatError(f"{source}: manifest.json: {fault}")
    return manifest


def is_member_name(name: str) -> bool:
    """Whether a name is safe: relative, ASCII, '/'-separated parts that start with a letter, a digit or '_'."""
    return len(name) <= MAX_NAME_BYTES and _NAME.fullmatch(name) is not None


def find_fault(manifest: Manifest) -> str | None:
    """What is wrong with a manifest whose types are right; None for a good one."""
    if not manifest.variants:
        return "lists no variant"
    if len(manifest.members) > MAX_MEMBERS:
        return f"lists {len(manifest.members)} members; at most {MAX_MEMBERS} are allowed"
    for name, member in manifest.members.items():
        if not is_member_name(name) or name in (MANIFEST_NAME, SIGNATURE_NAME):
            return f"member name {name[:80]!r} is not allowed"
        if _SHA256.fullmatch(member.sha256) is None:
            return f"digest of {name} is not 64 hexadecimal digits"
        if not 0 <= member.size_bytes <= MAX_MEMBER_BYTES:
            return f"size of {name}, {member.size_bytes}, is not within 0 and {MAX_MEMBER_BYTES}"
    names = [variant.name for variant in manifest.variants]
    if len(set(names)) < len(names):
        return "two variants have the same name"
    faults = (_find_variant_fault(manifest, variant) for variant in manifest.variants)
    fault = next((text for text in faults if text), None) or find_bound_fault(manifest.model.bound)
    return fault or _find_tensor_fault(manifest.signature) or _find_unused_fault(manifest)


def _find_variant_fault(manifest: Manifest, variant: VariantEntry) -> str | None:
    if _VARIANT_NAME.fullmatch(variant.name) is None:
        return f"variant name {variant.name[:80]!r} is not allowed"
    if variant.cores < 1:
        return f"variant {variant.name} is for {variant.cores} cores"
    for library in (variant.library, *variant.runtime_libraries):
        if library not in manifest.members:
            return f"variant {variant.name} needs {library[:80]!r}, which is no member"
        if manifest.members[library].size_bytes > MAX_LIBRARY_BYTES:
            size_bytes = manifest.members[library].size_bytes
            return f"{library} claims {size_bytes} bytes; a library has at most {MAX_LIBRARY_BYTES}"
    for index, weight in enumerate(variant.weights):
        member = manifest.members.get(weight.member)
        if member is None:
            return f"variant {variant.name} needs {weight.member[:80]!r}, which is no member"
        if weight.dtype not in ELEMENT_BYTES or any(axis < 0 for axis in weight.shape):
            return f"weight {index} of variant {variant.name} has no usable dtype and shape"
        if weight.size_bytes != member.size_bytes:
            return (
                f"weight {index} of variant {variant.name} takes {weight.size_bytes} bytes, {weight.member} has others"
            )
    return None


def _find_tensor_fault(signature: ModelSignature) -> str | None:
    for tensors in (signature.inputs, signature.outputs):
        if len({spec.name for spec in tensors}) < len(tensors):
            return "two inputs or two outputs have the same name"
        for spec in tensors:
            if spec.dtype not in ELEMENT_BYTES:
                return f"{spec.name} has the unknown dtype {spec.dtype[:40]!r}"
            if any(axis is not None and axis < 0 for axis in spec.shape):
                return f"{spec.name} has a negative dimension"
            if spec.index_limit is not None and (spec.index_limit < 1 or not spec.dtype.startswith(("int", "uint"))):
                return f"{spec.name}, {spec.dtype}, has the index limit {spec.index_limit}"
    if any(axis is None for spec in signature.inputs for axis in spec.shape):
        return "an input has an unbound dimension"
    if any(spec.index_limit is not None for spec in signature.outputs):
        return "an output has an index limit"
    return None if signature.outputs else "the model has no output"


def _find_unused_fault(manifest: Manifest) -> str | None:
    used = {manifest.log} if manifest.log is not None else set()
    for variant in manifest.variants:
        used.update((variant.library, *variant.runtime_libraries), (weight.member for weight in variant.weights))
    if manifest.log is not None and manifest.log not in manifest.members:
        return f"the log {manifest.log[:80]!r} is no member"
    if manifest.log is not None and manifest.members[manifest.log].size_bytes > MAX_LOG_BYTES:
        return f"the log claims {manifest.members[manifest.log].size_bytes} bytes; at most {MAX_LOG_BYTES} are allowed"
    unused = [name for name in manifest.members if name not in used and not name.startswith(ATTACHMENT_FOLDER)]
    return f"nothing in the manifest uses member {unused[0]!r}" if unused else None
