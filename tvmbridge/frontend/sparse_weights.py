"""Makes sparse tensors dense: no kernel of ours takes the few elements that are not zero."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from tvmbridge.errors import ModelError
from tvmbridge.frontend.walk import graphs

_MOST_BYTES = 1 << 30


def densify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: any model. After: no sparse initializer, but dense ones of their names. Changes `model`."""
    for graph in graphs(model):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(numpy_helper.from_array(dense(sparse), sparse.values.name))
        del graph.sparse_initializer[:]
    return model


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse tensor's value; ModelError where it would take more than 1 GiB, or its indices lie outside."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if math.prod(shape) * values.dtype.itemsize > _MOST_BYTES:
        raise ModelError(
            f"the sparse tensor {name!r} of shape {list(shape)} would take"
            f" {math.prod(shape) * values.dtype.itemsize / 2**30:.3g} GiB",
            hint="at most 1 GiB is taken of a sparse tensor: export it as a dense one",
        )
    made = np.zeros(shape, values.dtype)
    try:
        if indices.ndim == 1:
            made.reshape(-1)[indices] = values
        else:
            made[tuple(indices.T)] = values
    except (IndexError, ValueError) as exc:
        raise ModelError(
            f"the sparse tensor {name!r} has indices outside of its shape {list(shape)}", hint="export the model again"
        ) from exc
    return made
