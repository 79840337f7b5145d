"""Where values decide how many elements there are, they are known at build time or asked for by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import BOOL, FLOAT, INT64, model, one_node, value

import tvmbridge.backend as backend
from tvmbridge.errors import UnboundValueError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("condition", [[0, 1, 1], [1], [0, 1, 0, 1, 1, 0, 1, 1]])
def test_a_known_condition_selects_elements(axis: int | None, condition: list[int]) -> None:
    given = np.array(condition, bool)[: None if axis is None else (3, 5)[axis]]
    graph = one_node("Compress", given, shape=(3, 5), **({} if axis is None else {"axis": axis}))
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], np.compress(given, x, axis))


@pytest.mark.parametrize(
    ("op_type", "inputs", "asked"),
    [
        ("Compress", [value("x", (3,)), value("c", (3,), BOOL)], {"c"}),
        ("NonZero", [value("x", (3, 4))], {"x"}),
        ("Unique", [value("x", (3, 4))], {"x"}),
        ("NonMaxSuppression", [value("boxes", (1, 5, 4)), value("scores", (1, 1, 5))], {"boxes"}),
    ],
)
def test_what_decides_how_many_is_asked_for_by_name(
    op_type: str, inputs: list[onnx.ValueInfoProto], asked: set[str]
) -> None:
    node = onnx.helper.make_node(op_type, [entry.name for entry in inputs], ["y"])
    result = INT64 if op_type.startswith("Non") else FLOAT
    with pytest.raises(UnboundValueError, match="decide") as caught:
        import_onnx(model([node], inputs, [value("y", None, result)]))
    assert set(caught.value.inputs) == asked


def test_boxes_that_are_bound_are_suppressed_at_build_time() -> None:
    node = onnx.helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"])
    inputs = [value("boxes", (1, 3, 4)), value("scores", (1, 1, 3))]
    limits = {"most": np.array([2]), "overlap": np.array([0.5], np.float32), "least": np.array([0], np.float32)}
    graph = model([node], inputs, [value("kept", None, INT64)], limits)
    boxes = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [5, 5, 6, 6]]], np.float32)
    scores = np.array([[[0.5, 0.9, 0.1]]], np.float32)
    (kept,) = backend.run_model(graph, [boxes, scores])
    (expected,) = ReferenceEvaluator(graph).run(None, {"boxes": boxes, "scores": scores})
    np.testing.assert_array_equal(kept, expected)
