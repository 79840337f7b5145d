"""Grids, samples on them and columns put back give what ONNX's reference gives, wherever the samples lie."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, one_node, value

import tvmbridge.backend as backend
from tvmbridge.errors import UnboundValueError, UnsupportedOperatorError
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler


def kind(dtype: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 4).astype(dtype)


def assert_close(output: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert output.dtype == expected.dtype and output.shape == expected.shape
    np.testing.assert_allclose(output.astype("f8"), expected.astype("f8"), rtol=tolerance, atol=tolerance)


def sampling(x: np.ndarray, grid: np.ndarray, opset: int = 20, **attributes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)
    x_kind, grid_kind = kind(x.dtype.name), kind(grid.dtype.name)
    inputs = [value("x", x.shape, x_kind), value("grid", grid.shape, grid_kind)]
    return model([node], inputs, [value("y", None, x_kind)], opset=opset)


def grid_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).uniform(-2.5, 2.5, shape).astype(np.float32)


def assert_sampled(x: np.ndarray, grid: np.ndarray, tolerance: float = 1e-4, **attributes: object) -> None:
    graph = sampling(x, grid, **attributes)
    (expected,) = ReferenceEvaluator(graph).run(None, {"x": x, "grid": grid})
    assert_close(backend.run_model(graph, [x, grid])[0], expected, tolerance)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_samples_of_images_agree(mode: str, padding: str, corners: int) -> None:
    options = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    assert_sampled(numbers((2, 3, 5, 4)), grid_of((2, 3, 7, 2)), **options)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_samples_of_lines_and_volumes_agree(mode: str) -> None:
    assert_sampled(numbers((1, 2, 7)), grid_of((1, 5, 1)), mode=mode, padding_mode="reflection")
    assert_sampled(numbers((1, 2, 3, 5, 4)), grid_of((1, 2, 3, 2, 3)), mode=mode, padding_mode="border")


def test_other_types_and_the_modes_of_old_op_sets_agree() -> None:
    grid = grid_of((1, 3, 4, 2))
    assert_sampled(numbers((1, 2, 5, 4), "float64"), grid.astype("f8"), mode="linear")
    assert_sampled(numbers((1, 2, 5, 4), "float16"), grid, 2e-2, mode="linear")
    assert_sampled(numbers((1, 2, 5, 4), "int8"), grid, mode="nearest", padding_mode="border")
    graph = sampling(numbers((1, 2, 5, 4)), grid, opset=16, mode="bicubic")
    feeds = {"x": numbers((1, 2, 5, 4)), "grid": grid}
    (expected,) = ReferenceSession(graph, threads=1).run(feeds).values()
    assert_close(backend.run_model(graph, list(feeds.values()))[0], expected)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_grid_of_no_numbers_reads_nothing_outside(mode: str, padding: str) -> None:
    grid = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, 0, 0], np.float32).reshape(1, 1, 4, 2)
    x = numbers((1, 1, 5, 4))
    (y,) = backend.run_model(sampling(x, grid, mode=mode, padding_mode=padding), [x, grid])
    assert np.isfinite(y).all() and abs(y).max() <= abs(x).max()


def test_numbers_between_whole_ones_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperatorError, match="int8"):
        import_onnx(sampling(numbers((1, 2, 5, 4), "int8"), grid_of((1, 3, 4, 2)), mode="linear"))


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 3, 2, 4)])
def test_grids_agree(size: tuple[int, ...], corners: int) -> None:
    rank = len(size) - 2
    graph = one_node("AffineGrid", np.array(size), shape=(2, rank, rank + 1), opset=20, align_corners=corners)
    theta = numbers((2, rank, rank + 1))
    (expected,) = ReferenceSession(graph, threads=1).run({"x": theta}).values()
    assert_close(backend.run_model(graph, [theta])[0], expected)


def test_a_grid_whose_size_is_not_bound_asks_for_it() -> None:
    node = onnx.helper.make_node("AffineGrid", ["theta", "size"], ["y"])
    inputs = [value("theta", (1, 2, 3)), value("size", (4,), INT64)]
    with pytest.raises(UnboundValueError) as caught:
        import_onnx(model([node], inputs, [value("y", None)], opset=20))
    assert caught.value.inputs == ("size",)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize(
    ("image", "block", "count", "attributes"),
    [
        ((5, 7), (2, 3), 20, {}),
        ((6, 7), (2, 3), 9, {"strides": [2, 2]}),
        ((5, 6), (2, 2), 25, {"dilations": [1, 2], "pads": [0, 1, 1, 0]}),
        ((4, 3, 5), (1, 3, 2), 16, {}),
    ],
)
def test_columns_are_summed_into_images(dtype: str, image: tuple, block: tuple, count: int, attributes: dict) -> None:
    shape = (2, 3 * int(np.prod(block)), count)
    graph = one_node("Col2Im", np.array(image), np.array(block), shape=shape, dtype=kind(dtype), opset=18, **attributes)
    x = numbers(shape, dtype)
    (expected,) = ReferenceEvaluator(graph).run(None, {"x": x})
    assert_close(backend.run_model(graph, [x])[0], expected)
