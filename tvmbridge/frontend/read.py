"""Reads an ONNX model: a file with its external data, or a ModelProto in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import onnx

from tvmbridge.errors import ModelFileError, reason
from tvmbridge.frontend.external_data import load_external_data
from tvmbridge.frontend.graph_check import check_graph
from tvmbridge.frontend.walk import tensors

_PROTOBUF_LIMIT_BYTES = 2**31
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or a bundle?)"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"\x89HDF\r\n", "an HDF5 file (a Keras model?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"<", "text (a web page instead of the download?)"),
)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """An ONNX model as it was given.

    name: the file's stem, with "?" for what is not UTF-8, or the graph's name.
    proto: a copy of our own, all data in it.
    sha256: digest of the file's bytes and its external data files', in the order in which the model names them.
    source: what is given to other programs: the file's absolute path, or a second copy of the proto.
    """

    name: str
    proto: onnx.ModelProto
    sha256: str
    source: Path | onnx.ModelProto


def read_model(model: str | os.PathLike[str] | onnx.ModelProto) -> LoadedModel:
    """Load and check a model; ModelFileError says what is wrong with the file, ModelError with the graph."""
    loaded = _take_proto(model) if isinstance(model, onnx.ModelProto) else _read_file(Path(model))
    check_graph(loaded.proto, loaded.name)
    return loaded


def parse_model(data: bytes, source: str) -> onnx.ModelProto:
    """An ONNX file's bytes as a proto; external data is left where it is. Source: the file's name, for messages."""
    if not data:
        raise ModelFileError(f"{source} is empty", hint="export or download the model again")
    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception as exc:  # protobuf's own DecodeError, UnicodeDecodeError or MemoryError, by implementation
        raise _not_onnx(data, source) from exc
    if not proto.HasField("graph") or not proto.HasField("ir_version"):
        raise _not_onnx(data, source)
    return proto


def _read_file(path: Path) -> LoadedModel:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            # Reading a pipe waits for whoever writes it, and neither digest nor reference could read it again.
            raise ModelFileError(f"{path} is no regular file", hint="write the model to a file and give its path")
        size = status.st_size
        if size >= _PROTOBUF_LIMIT_BYTES:
            raise ModelFileError(
                f"{path} has {size} bytes, and protobuf reads no file of 2 GB or more",
                hint="save it with its weights as external data: onnx.save(..., save_as_external_data=True)",
            )
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ModelFileError(f"{path}: no such file", hint="give the path of an .onnx file") from exc
    except IsADirectoryError as exc:
        inside = sorted(child.name for child in path.glob("*.onnx"))
        found = f"it holds {', '.join(inside[:5])}" if inside else "it holds no .onnx file"
        raise ModelFileError(f"{path} is a folder, not an ONNX file", hint=found) from exc
    except (OSError, ValueError) as exc:
        raise ModelFileError(f"{path} cannot be read: {reason(exc)}") from exc
    proto = parse_model(data, str(path))
    digest = hashlib.sha256(data)
    load_external_data(proto, path, digest)
    name = path.stem.encode("utf-8", "replace").decode()
    return LoadedModel(name, proto, digest.hexdigest(), path.absolute())


def _take_proto(model: onnx.ModelProto) -> LoadedModel:
    name = model.graph.name or "model"
    if not model.HasField("graph"):
        raise ModelFileError("the ModelProto holds no graph", hint="load it with onnx.load(path)")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors(model)):
        raise ModelFileError(
            f"{name}: the ModelProto refers to data in other files", hint="give the path of the .onnx file instead"
        )
    try:
        data = model.SerializeToString(deterministic=True)
    except Exception as exc:  # protobuf raises EncodeError or ValueError past 2 GB
        hint = "save it with onnx.save(..., save_as_external_data=True) and give the path"
        raise ModelFileError(f"{name}: the ModelProto cannot be serialized: {reason(exc)}", hint=hint) from exc
    copies = [onnx.ModelProto(), onnx.ModelProto()]
    for copy in copies:
        copy.CopyFrom(model)
    return LoadedModel(name, copies[0], hashlib.sha256(data).hexdigest(), copies[1])


def _not_onnx(data: bytes, source: str) -> ModelFileError:
    for magic, kind in _OTHER_KINDS:
        if data.startswith(magic):
            return ModelFileError(f"{source} is not an ONNX model but {kind}")
    return ModelFileError(
        f"{source} is not an ONNX model, or is truncated or damaged ({len(data)} bytes)",
        hint="export or download it again and compare its size",
    )
