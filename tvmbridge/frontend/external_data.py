"""Loads tensors that a model keeps in files beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from tvmbridge.errors import ModelFileError, reason
from tvmbridge.frontend.tensor_bytes import tensor_size_bytes
from tvmbridge.frontend.walk import tensors


def load_external_data(model: onnx.ModelProto, path: Path, digest: hashlib._Hash) -> None:
    """Put the data of every external tensor into `model`, in place, and the bytes of the files into `digest`.

    path: the model's file; its data must lie in the same folder or below. Refused with ModelFileError: a file that is
    missing, lies elsewhere (through a link too), or ends before the tensor does.
    """
    files: dict[str, Path] = {}
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _find(path, location, tensor.name)
            _hash_file(files[location], digest)
        expected = tensor_size_bytes(tensor, str(path))
        offset, length = _range(entries, expected, f"{path}: tensor {tensor.name!r}")
        data = _read_range(files[location], offset, length, tensor.name)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = data


def _find(path: Path, location: str, tensor: str) -> Path:
    folder = path.parent
    try:
        file = (folder / location).resolve()
        inside = bool(location) and file.is_relative_to(folder.resolve())
        exists = inside and file.is_file()
    except (OSError, ValueError) as exc:  # a NUL byte or a name too long
        raise ModelFileError(f"{path}: tensor {tensor!r}: bad external file {location!r}: {reason(exc)}") from exc
    if not inside:
        raise ModelFileError(
            f"{path}: tensor {tensor!r} wants external data at {location!r}, outside the model's folder",
            hint="copy the data file beside the model (a copy, not a link) and name it by a relative path",
        )
    if not exists:
        raise ModelFileError(
            f"{path}: external data file {location!r} is missing (wanted by tensor {tensor!r})",
            hint=f"copy it to {folder / location}: a model with external data is all of its files",
        )
    return file


def _hash_file(file: Path, digest: hashlib._Hash) -> None:
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as exc:
        raise ModelFileError(f"{file} cannot be read: {reason(exc)}") from exc


def _range(entries: dict[str, str], expected: int, what: str) -> tuple[int, int]:
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(expected)))
    except ValueError as exc:
        raise ModelFileError(f"{what}: offset and length of its external data are no numbers: {entries}") from exc
    if offset < 0 or length != expected:
        raise ModelFileError(f"{what} takes {expected} bytes, its external data claims {length} at offset {offset}")
    return offset, length


def _read_range(file: Path, offset: int, length: int, tensor: str) -> bytes:
    try:
        size = file.stat().st_size
        if size < offset + length:
            raise ModelFileError(
                f"{file} is truncated: tensor {tensor!r} ends at byte {offset + length}, the file at {size}",
                hint="copy or download the data file again",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as exc:
        raise ModelFileError(f"{file} cannot be read: {reason(exc)}") from exc
