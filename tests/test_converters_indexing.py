"""Gathers and scatters give what ONNX Runtime gives, for any element, index and reduction, and stay inside."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, one_node, value

import tvmbridge.backend as backend
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

SHAPE = (3, 5, 4)
DTYPES = ("float32", "float64", "float16", "int8", "uint16", "int64")
REDUCTIONS = ("none", "add", "mul", "min", "max")


def kind(dtype: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 5) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=shape) * 4
    return (drawn > 0) if dtype == "bool" else abs(drawn).astype(dtype) if dtype[0] == "u" else drawn.astype(dtype)


def indices(shape: tuple[int, ...], extent: int) -> np.ndarray:
    return np.random.default_rng(6).integers(-extent, extent, shape)


def of_inputs(op_type: str, *feeds: np.ndarray, **attributes: object) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one operator on inputs that these arrays are for, and the arrays by name."""
    named = {f"x{k}": array for k, array in enumerate(feeds)}
    node = onnx.helper.make_node(op_type, list(named), ["y"], **attributes)
    inputs = [value(name, array.shape, kind(array.dtype.name)) for name, array in named.items()]
    return model([node], inputs, [value("y", None, kind(feeds[0].dtype.name))], opset=18), named


def assert_same(output: np.ndarray, expected: np.ndarray) -> None:
    assert output.dtype == expected.dtype and output.shape == expected.shape
    np.testing.assert_allclose(output.astype("f8"), expected.astype("f8"), rtol=1e-2 if output.dtype == "f2" else 1e-5)


def assert_like_runtime(op_type: str, *feeds: np.ndarray, **attributes: object) -> None:
    graph, named = of_inputs(op_type, *feeds, **attributes)
    (expected,) = ReferenceSession(graph, threads=1).run(named).values()
    assert_same(backend.run_model(graph, list(feeds))[0], expected)


def assert_like_reference(op_type: str, *feeds: np.ndarray, **attributes: object) -> None:
    graph, named = of_inputs(op_type, *feeds, **attributes)
    with np.errstate(over="ignore"):
        (expected,) = ReferenceEvaluator(graph).run(None, named)
    assert_same(backend.run_model(graph, list(feeds))[0], expected)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_elements_of_every_type_are_gathered(dtype: str) -> None:
    x = numbers(SHAPE, dtype)
    assert_like_reference("Gather", x, indices((2, 3), 5), axis=-2)
    assert_like_runtime("GatherElements", x, indices((3, 2, 4), 5), axis=1)
    assert_like_reference("GatherND", x, indices((3, 2, 1), 5), batch_dims=1)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_indices_may_be_fewer_than_the_elements_along_every_axis(axis: int) -> None:
    shape = (2, 3, 2)
    assert_like_runtime("GatherElements", numbers(SHAPE), indices(shape, SHAPE[axis]), axis=axis)
    assert_like_reference(
        "ScatterElements", numbers(SHAPE), indices(shape, SHAPE[axis]), numbers(shape, seed=1), axis=axis
    )


@pytest.mark.parametrize(("dtype", "reduction"), list(itertools.product(DTYPES, REDUCTIONS)))
def test_elements_that_meet_are_reduced(dtype: str, reduction: str) -> None:
    x, where = numbers(SHAPE, dtype), indices((3, 7, 4), 5)
    assert_like_reference("ScatterElements", x, where, numbers((3, 7, 4), dtype, 1), axis=1, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_that_meet_are_reduced(reduction: str) -> None:
    where = np.array([[[0, -1], [2, 3]], [[0, 4], [-3, -1]]])
    assert_like_reference("ScatterND", numbers(SHAPE), where, numbers((2, 2, 4), seed=1), reduction=reduction)


def test_truth_is_scattered_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    x, where = numbers(SHAPE, "bool"), np.array([[0, -1], [2, 3], [0, 4]])
    for reduction in ("none", "add", "mul"):
        assert_like_runtime("ScatterND", x, where, numbers((3, 4), "bool", 1), reduction=reduction)
    assert "Warning" not in capfd.readouterr().err


def test_scatters_of_old_op_sets_replace() -> None:
    weights = np.array([[1, -4, 0]]), numbers((1, 3), seed=1)
    for op_type, opset in (("Scatter", 10), ("ScatterElements", 11)):
        graph = one_node(op_type, *weights, shape=(2, 5), axis=1, opset=opset)
        (expected,) = ReferenceSession(graph, threads=1).run({"x": numbers((2, 5))}).values()
        assert_same(backend.run_model(graph, [numbers((2, 5))])[0], expected)


def test_an_index_that_the_run_computes_out_of_range_reads_and_writes_nothing_outside() -> None:
    nodes = [
        onnx.helper.make_node("Mul", ["at", "far"], ["where"]),
        onnx.helper.make_node("ScatterElements", ["x", "where", "new"], ["written"]),
        onnx.helper.make_node("GatherElements", ["written", "where"], ["y"]),
    ]
    inputs = [value("x", (5,)), value("at", (2,), INT64), value("new", (2,))]
    graph = model(nodes, inputs, [value("y", None), value("written", None)], {"far": np.array(10**12)})
    new = np.array([7, 9], np.float32)
    y, written = backend.run_model(graph, [np.zeros(5, np.float32), np.array([1, -1]), new])
    np.testing.assert_array_equal(y, new)
    np.testing.assert_array_equal(written, [9, 0, 0, 0, 7])


def test_what_networks_gather_by_stays_plain_relax() -> None:
    graph = one_node("Gather", np.array([2, -1]), shape=(4, 5), axis=1)
    assert "R.take(" in str(import_onnx(graph).module)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_updates_of_all_places_are_combined_with_what_was_there(reduction):
    x, updates = numbers((2, 3)), numbers((2, 3), seed=8)
    graph, feeds = of_inputs("ScatterND", x, np.array([[0], [1]]), updates, reduction=reduction)
    expected = {
        "none": updates,
        "add": x + updates,
        "mul": x * updates,
        "min": np.minimum(x, updates),
        "max": np.maximum(x, updates),
    }[reduction]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[0], [1]]), "x1"))
    kept = [entry for entry in graph.graph.input if entry.name != "x1"]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    np.testing.assert_array_equal(backend.run_model(graph, [feeds["x0"], feeds["x2"]])[0], expected)
