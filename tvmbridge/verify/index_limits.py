"""Follows the inputs of a model to what they index, so that random inputs can stay within it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference

from tvmbridge.errors import ModelFileError, reason
from tvmbridge.frontend.index_limits import find_index_limits
from tvmbridge.signature import ModelSignature


def index_limits(source: str | os.PathLike[str] | onnx.ModelProto, signature: ModelSignature) -> dict[str, int]:
    """Input name → number of elements it may index (the smallest, where it indexes several); absent: no index.

    More than the limits of the signature: also of indices that the model may clamp, mask or cut off.
    """
    names = [spec.name for spec in signature.inputs]
    return find_index_limits(_graph(source, signature), names, certain=False)


def _graph(source: str | os.PathLike[str] | onnx.ModelProto, signature: ModelSignature) -> onnx.GraphProto:
    """The model's graph with functions expanded and the signature's shapes, without its weights' data."""
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
    else:
        try:
            model = onnx.ModelProto.FromString(Path(source).read_bytes())
        except Exception as exc:  # OSError, or protobuf's own DecodeError
            raise ModelFileError(f"{source} is no readable ONNX model: {reason(exc)}") from exc
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 4096:
            tensor.ClearField("raw_data")
    bound = {spec.name: spec.shape for spec in signature.inputs}
    for entry in model.graph.input:
        if entry.name in bound:
            entry.type.tensor_type.ClearField("shape")
            entry.type.tensor_type.shape.SetInParent()
            for size in bound[entry.name]:
                entry.type.tensor_type.shape.dim.add().dim_value = size or 0
    del model.graph.value_info[:]
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model, True)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # C++: shapes that cannot be inferred leave fewer limits, and the import has its own errors
        return model.graph
    return model.graph
