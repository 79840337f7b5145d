"""Whether a result that misses the suite's expected values is nearer to the exact ones than those are.

Exact: ONNX's reference implementation on the same inputs in float64. Some expected values are computed in float32, and
rounded by more than the tolerance that the suite compares with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def is_nearer(model: onnx.ModelProto, inputs: Sequence[Any], expected: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether each output given is off the exact one by no more than the expected one is."""
    try:
        exact = ReferenceEvaluator(_in_float64(model)).run(None, _feeds(model, inputs))
    except Exception:  # the reference has no such form in float64: nothing is known
        return False
    return len(exact) == len(expected) == len(given) and all(map(_is_nearer, exact, expected, given))


def _is_nearer(exact: Any, expected: Any, given: Any) -> bool:
    arrays = [np.asarray(value) for value in (exact, expected, given)]
    if arrays[0].dtype != np.float64 or any(array.dtype != np.float32 for array in arrays[1:]):
        return False
    if len({array.shape for array in arrays}) > 1 or not all(np.isfinite(array).all() for array in arrays):
        return False
    errors = [float(np.abs(array.astype(np.float64) - arrays[0]).max(initial=0)) for array in arrays[1:]]
    return errors[1] <= errors[0]


def _feeds(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, Any]:
    arrays = [value.astype(np.float64) if value.dtype == np.float32 else value for value in map(np.asarray, inputs)]
    return dict(zip((entry.name for entry in model.graph.input), arrays, strict=True))


def _in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _DOUBLE
    for tensor in _weights(wide):
        if tensor.data_type == _FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    return wide


def _weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (entry.t for entry in node.attribute if entry.HasField("t"))
