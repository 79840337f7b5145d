"""One node of ONNX, compiled and run, beside ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

import tvmbridge.backend as backend

Arrays = Sequence["np.ndarray | None"]


def make_node(op_type: str, arrays: Arrays, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    """A node that reads x0, x1, … where an array is given, and makes y0, y1, …"""
    names = [f"x{position}" if array is not None else "" for position, array in enumerate(arrays)]
    return helper.make_node(op_type, names, [f"y{position}" for position in range(outputs)], **attributes)


def run_reference(node: onnx.NodeProto, arrays: Arrays, opset: int) -> list[np.ndarray]:
    """What ONNX's reference gives."""
    given = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None}
    entries = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "node", entries, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, given)]


def assert_node(
    op_type: str,
    arrays: Arrays,
    *,
    opset: int = 18,
    outputs: int = 1,
    expected: Sequence[np.ndarray] | None = None,
    tolerance: float = 1e-5,
    **attributes: Any,
) -> None:
    """Compile, run and compare a node. None among the arrays is an absent input.

    expected: the results, where the reference is wrong or lacks the form.
    """
    node = make_node(op_type, arrays, outputs, **attributes)
    wanted = run_reference(node, arrays, opset) if expected is None else list(expected)
    given = [array for array in arrays if array is not None]
    results = [(array.dtype, array.shape) for array in wanted]
    found = backend.run_node(node, given, outputs_info=results, opset_version=opset)
    assert [(array.dtype, array.shape) for array in found] == results
    for made, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            made.astype(np.float64), right.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True
        )
