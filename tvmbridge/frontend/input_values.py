"""Binds inputs to values: they become constants, and are no inputs any more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from tvmbridge.errors import ShapeError
from tvmbridge.frontend.shapes import describe_inputs

_FREE_INITIALIZERS = 4  # the IR version from which on an initializer need not be an input


def bind_values(model: onnx.ModelProto, values: Mapping[str, ArrayLike]) -> onnx.ModelProto:
    """Before: any model. After: no input of `values`' names, but initializers. Changes `model`.

    Numbers and lists take the input's dtype. Raises ShapeError for a name that is no input, and for a value of another
    dtype or shape than the model's.
    """
    inputs = {entry.name: entry for entry in model.graph.input}
    if values:
        model.ir_version = max(model.ir_version, _FREE_INITIALIZERS)
    for name, value in values.items():
        if name not in inputs:
            raise ShapeError(f"no input is called {name!r}", hint=f"the model has {describe_inputs(inputs)}")
        tensor = inputs[name].type.tensor_type
        array = _array(name, value, tensor.elem_type)
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


def with_values(source: Path | onnx.ModelProto, values: Mapping[str, ArrayLike]) -> Path | onnx.ModelProto:
    """What a reference runs in place of `source`: a copy with the values bound, if there are any."""
    if not values:
        return source
    if isinstance(source, Path):
        return bind_values(onnx.load(source), values)
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    return bind_values(copy, values)


def _array(name: str, value: ArrayLike, elem_type: int) -> np.ndarray:
    array = np.asarray(value)
    wanted = helper.tensor_dtype_to_np_dtype(elem_type) if elem_type else array.dtype
    if array.dtype == wanted:
        return array
    cast = array.astype(wanted) if array.dtype.kind in "biuf" else array
    if isinstance(value, np.ndarray) or not np.array_equal(cast, array):
        raise ShapeError(f"--value {name}: {array.dtype} given, the input is {wanted}")
    return cast
