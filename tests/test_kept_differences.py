"""Differences of floats: what a program adds and takes away again is rounded, and infinities leave NaN."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model, value

from tvmbridge import backend

pytestmark = pytest.mark.compiler

X = np.array([0.3, -1.7, 2.5, 1e8, np.inf, -np.inf, np.nan, 3e38], np.float32)
Y = np.array([1e8, 0.1, np.inf, -1e8, np.inf, 1, 0, 3e38], np.float32)
MAGIC = np.float32(1.5 * 2**23)  # adding it and taking it away rounds to whole numbers


def graph(*nodes: tuple[str, str, str, str]) -> onnx.ModelProto:
    made = [helper.make_node(kind, [left, right], [result]) for kind, left, right, result in nodes]
    inputs = [value("x", X.shape), value("y", Y.shape)]
    return model(made, inputs, [value("z", X.shape)], {"c": np.array(MAGIC)})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Add", "x", "c", "s"), ("Sub", "s", "c", "z")], lambda: (X + MAGIC) - MAGIC),
        ([("Sub", "x", "c", "s"), ("Add", "s", "c", "z")], lambda: (X - MAGIC) + MAGIC),
        ([("Add", "x", "y", "s"), ("Sub", "s", "y", "z")], lambda: (X + Y) - Y),
        ([("Add", "y", "x", "s"), ("Sub", "s", "y", "z")], lambda: (Y + X) - Y),
        ([("Add", "x", "y", "s"), ("Sub", "x", "s", "z")], lambda: X - (X + Y)),
        ([("Add", "x", "y", "s"), ("Add", "s", "y", "t"), ("Sub", "t", "y", "z")], lambda: ((X + Y) + Y) - Y),
        ([("Sub", "x", "y", "s"), ("Sub", "x", "s", "z")], lambda: X - (X - Y)),
        ([("Max", "x", "y", "s"), ("Sub", "s", "y", "z")], lambda: np.maximum(X, Y) - Y),
        ([("Sub", "x", "x", "z")], lambda: X - X),
        ([("Mul", "x", "y", "s"), ("Sub", "s", "s", "z")], lambda: X * Y - X * Y),
    ],
)
def test_a_term_that_is_added_and_taken_away_again_leaves_its_rounding(nodes, expected):
    with np.errstate(all="ignore"):
        (result,) = backend.run_model(graph(*nodes), [X, Y])
        np.testing.assert_array_equal(result, expected())


def test_what_is_chosen_and_taken_away_again_leaves_nan_of_infinities():
    nodes = [helper.make_node("Where", ["c", "x", "y"], ["s"]), helper.make_node("Sub", ["s", "x"], ["z"])]
    flags = np.arange(X.size) % 2 == 0
    graph = model(nodes, [value("x", X.shape), value("y", Y.shape)], [value("z", X.shape)], {"c": flags})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(backend.run_model(graph, [X, Y])[0], np.where(flags, X, Y) - X)
