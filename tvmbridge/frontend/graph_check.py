"""Refuses a graph that is malformed: what onnx's checker finds, and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from tvmbridge.errors import ModelError, ModelFileError, reason
from tvmbridge.frontend.sizes import check_expansion
from tvmbridge.frontend.tensor_bytes import check_tensor_bytes
from tvmbridge.frontend.walk import graphs, nested_graphs, opset

_OLDEST_IR_VERSION = 3
_PROTOBUF_LIMIT_BYTES = 2**31 - 1


def check_graph(model: onnx.ModelProto, name: str) -> None:
    """Raise ModelFileError where the file is damaged, ModelError where its graph is wrong; name: for messages.

    Operators that onnx does not know are left to operators.py, which lists all of them.
    """
    _check_names(model, name)
    _check_versions(model, name)
    outputs = [entry.name for entry in model.graph.output]
    if not outputs or len(set(outputs)) != len(outputs):
        what = f"gives {', '.join(outputs)}: one name twice" if outputs else "has no output"
        raise ModelError(f"{name}: the graph {what}", hint="export the model with the outputs you want, each once")
    check_tensor_bytes(model, name)
    if model.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        return  # the checker serializes the model; the later steps see it without its weights
    # Inputs and outputs without a shape are usual, and ONNX Runtime takes them, but the checker does not.
    shapeless = [
        entry.type.tensor_type
        for entry in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        if entry.type.HasField("tensor_type") and not entry.type.tensor_type.HasField("shape")
    ]
    for tensor in shapeless:
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as exc:  # ValidationError, but C++ also comes through as ValueError, TypeError or RuntimeError
        if "No Op registered" not in str(exc):
            raise ModelError(f"{name}: the graph is malformed: {reason(exc)}", hint="export it again") from exc
    finally:
        for tensor in shapeless:
            tensor.ClearField("shape")
    check_expansion(model, name)


def _check_versions(model: onnx.ModelProto, name: str) -> None:
    if model.ir_version < _OLDEST_IR_VERSION:
        raise ModelError(
            f"{name}: IR version {model.ir_version} is older than ONNX 1.1 (IR version {_OLDEST_IR_VERSION})",
            hint="export the model again with a current exporter",
        )
    if not model.opset_import:
        raise ModelFileError(
            f"{name}: the model imports no op-set: the file is truncated or damaged", hint="export or download it again"
        )
    newest = onnx.defs.onnx_opset_version()
    version = opset(model)
    if version is not None and not 1 <= version <= newest:
        raise ModelError(
            f"{name}: op-set {version}: the installed onnx {onnx.__version__} knows 1 to {newest}",
            hint=f"export the model with op-set {newest} or older, or install a newer onnx",
        )


def _check_names(model: onnx.ModelProto, name: str) -> None:
    try:
        broken = next((text for text in _texts(model) if not isinstance(text, str)), None)
    except UnicodeDecodeError as exc:  # by protobuf implementation, a name that is not UTF-8 raises or comes as bytes
        broken = exc.object
    if broken is not None:
        raise ModelFileError(
            f"{name}: the name {bytes(broken)[:40]!r} is not UTF-8: the file is damaged",
            hint="export or download it again",
        )


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [*graphs(model), *model.functions]
    for function in model.functions:
        bodies += nested_graphs(function.node)
        yield from (function.domain, *function.input, *function.output)
    for entry in (*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)):
        yield entry.domain
    for body in bodies:
        yield body.name
        for node in body.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield from (attribute.name, attribute.ref_attr_name)
        if isinstance(body, onnx.GraphProto):
            yield from (tensor.name for tensor in body.initializer)
            for value in (*body.input, *body.output, *body.value_info):
                yield value.name
                yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
