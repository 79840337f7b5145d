"""One variant of a bundle as plain files, for programs that load it without tvmbridge.

The files: `model.so`, the runtime libraries under their own names, `weights.bin`, and `variant.txt`, which says how to
call it, a line each:

    runtime NAME                  a runtime library, in the order to load them
    input DTYPE SHAPE NAME        in the order of the call; SHAPE is 1x3x224x224, or "scalar"
    weight DTYPE SHAPE OFFSET     in the order of the weights argument; OFFSET in weights.bin, a multiple of 64
    output DTYPE SHAPE NAME       in the order of the result; an axis that the run decides is "?"
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tvmbridge.bundle.archive import ALIGNMENT_BYTES
from tvmbridge.bundle.manifest import VariantEntry
from tvmbridge.bundle.reader import Bundle
from tvmbridge.errors import BundleFormatError, OutputError
from tvmbridge.signature import TensorSpec


def unpack_variant(bundle: Bundle, variant: VariantEntry, folder: str | os.PathLike[str]) -> None:
    """Write a variant's files to a new folder, whole or not at all; every digest is checked before.

    Raises DigestError, BundleFormatError where two files would have one name, and OutputError where the folder is
    there already or cannot be written.
    """
    target = Path(folder)
    if target.exists():
        raise OutputError(f"{target} is there already", hint="name a folder that is not, or remove it")
    names = ["model.so", "weights.bin", "variant.txt", *(PurePosixPath(n).name for n in variant.runtime_libraries)]
    if len(set(names)) < len(names):
        raise BundleFormatError(f"{bundle.path}: a runtime library has the name of another file: {', '.join(names)}")
    weights = bundle.map_weights(variant)
    libraries = {"model.so": bundle.read_member(variant.library)}
    libraries |= {PurePosixPath(name).name: bundle.read_member(name) for name in variant.runtime_libraries}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:50]}.", dir=target.parent) as name:
            made = Path(name, "variant")
            made.mkdir()
            for library, data in libraries.items():
                (made / library).write_bytes(data)
                (made / library).chmod(0o755)
            offsets = []
            with open(made / "weights.bin", "wb") as stream:
                for weight in weights:
                    stream.write(bytes(-stream.tell() % ALIGNMENT_BYTES))
                    offsets.append(stream.tell())
                    stream.write(weight.reshape(-1).view("uint8").data)
            (made / "variant.txt").write_text(_describe(bundle, variant, offsets), encoding="utf-8")
            os.rename(made, target)
    except OSError as exc:
        raise OutputError(f"cannot write {target}: {exc.strerror or exc}") from exc


def _describe(bundle: Bundle, variant: VariantEntry, offsets: Sequence[int]) -> str:
    signature = bundle.manifest.signature
    lines = [f"runtime {PurePosixPath(name).name}" for name in variant.runtime_libraries]
    lines += [_tensor("input", spec) for spec in signature.inputs]
    weights = zip(variant.weights, offsets, strict=True)
    lines += [f"weight {weight.dtype} {_shape(weight.shape)} {offset}" for weight, offset in weights]
    lines += [_tensor("output", spec) for spec in signature.outputs]
    return "".join(f"{line}\n" for line in lines)


def _tensor(what: str, spec: TensorSpec) -> str:
    return f"{what} {spec.dtype} {_shape(spec.shape)} {' '.join(spec.name.split())}"


def _shape(shape: Sequence[int | None]) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape) or "scalar"
