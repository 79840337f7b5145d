"""Binds inputs to values: they become constants, and are no inputs any more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.errors import ShapeError
from tvmbridge.frontend.shapes import describe_inputs


def bind_values(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Before: any model. After: no input of `values`' names, but initializers. Changes `model`.

    Raises ShapeError for a name that is no input, and a value of another dtype or shape than the model's.
    """
    inputs = {entry.name: entry for entry in model.graph.input}
    for name, value in values.items():
        if name not in inputs:
            raise ShapeError(f"no input is called {name!r}", hint=f"the model has {describe_inputs(inputs)}")
        tensor, array = inputs[name].type.tensor_type, np.asarray(value)
        wanted = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else array.dtype
        if array.dtype != wanted:
            raise ShapeError(f"--value {name}: {array.dtype} given, the input is {wanted}")
        axes = tensor.shape.dim
        fits = not tensor.HasField("shape") or (
            len(axes) == array.ndim
            and all(not axis.dim_value or axis.dim_value == size for axis, size in zip(axes, array.shape, strict=True))
        )
        if not fits:
            raise ShapeError(
                f"--value {name}: an array of shape {list(array.shape)} given",
                hint=f"the model has {describe_inputs(inputs)}",
            )
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    kept = [entry for entry in model.graph.input if entry.name not in values]
    if len(kept) != len(model.graph.input):
        copies = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in kept]
        del model.graph.input[:]
        model.graph.input.extend(copies)
    return model
