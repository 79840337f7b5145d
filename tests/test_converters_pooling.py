"""Pools of every form compute what ONNX Runtime or ONNX's reference computes, and MaxUnpool undoes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, one_node, value

from tvmbridge import backend

pytestmark = pytest.mark.compiler


def pool(op_type: str, x: np.ndarray, *, indices: bool = False, **attributes: object) -> onnx.ModelProto:
    number = helper.np_dtype_to_tensor_dtype(x.dtype)
    node = helper.make_node(op_type, ["x"], ["y", "i"] if indices else ["y"], **attributes)
    outputs = [value("y", None, number), *([value("i", None, INT64)] if indices else [])]
    return model([node], [value("x", x.shape, number)], outputs, opset=22)


def drawn(shape: tuple[int, ...], dtype: str = "f4", seed: int = 7) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 20).astype(dtype)


def by_onnx_runtime(graph: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x})


def assert_as(expected: list[np.ndarray], graph: onnx.ModelProto, x: np.ndarray) -> None:
    for output, wanted in zip(backend.run_model(graph, [x]), expected, strict=True):
        assert output.dtype == wanted.dtype
        np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, object]:
    """Attributes of a pool over one to three axes of 5 to 9 elements, explicit pads or none."""
    rank = draw(st.integers(1, 3))

    def numbers(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel = numbers(1, 3)
    pads = [draw(st.integers(0, taps - 1)) for taps in (*kernel, *kernel)]
    found = {"kernel_shape": kernel, "strides": numbers(1, 3), "dilations": numbers(1, 2), "pads": pads}
    return found | {"ceil_mode": draw(st.integers(0, 1))}


@settings(max_examples=12, deadline=None)
@given(windows(), st.sampled_from(["f4", "i1", "u1"]), st.integers(0, 1), st.integers(0, 99))
def test_maxima_and_their_indices_agree(window, dtype, order, seed) -> None:
    shape = (2, 3, *np.random.default_rng(seed).integers(5, 10, len(window["kernel_shape"])).tolist())
    x = drawn(shape, dtype, seed)
    graph = pool("MaxPool", x, indices=True, storage_order=order, **window)
    assert_as(by_onnx_runtime(graph, x), graph, x)


@settings(max_examples=12, deadline=None)
@given(windows(), st.integers(0, 1), st.integers(0, 99))
def test_averages_agree_whatever_the_pads_count(window, counted, seed) -> None:
    x = drawn((2, 3, *np.random.default_rng(seed).integers(5, 10, len(window["kernel_shape"])).tolist()), seed=seed)
    graph = pool("AveragePool", x, count_include_pad=counted, **window)
    assert_as(by_onnx_runtime(graph, x), graph, x)


@settings(max_examples=8, deadline=None)
@given(windows(), st.integers(1, 4), st.integers(0, 99))
def test_norms_of_windows_agree(window, power, seed) -> None:
    x = drawn((2, 3, *np.random.default_rng(seed).integers(5, 10, len(window["kernel_shape"])).tolist()), seed=seed)
    graph = pool("LpPool", x, p=power, **window)
    assert_as(by_onnx_runtime(graph, x), graph, x)


AUTO = ["SAME_UPPER", "SAME_LOWER", "VALID"]


@pytest.mark.parametrize("auto_pad", AUTO)
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_pads_that_follow_from_the_extents_agree(op_type: str, auto_pad: str) -> None:
    x = drawn((1, 3, 10, 7))
    graph = pool(op_type, x, auto_pad=auto_pad, kernel_shape=[3, 4], strides=[3, 2])
    assert_as(by_onnx_runtime(graph, x), graph, x)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_pads_that_follow_from_the_extents_say_how_many_windows_there_are(op_type: str, auto_pad: str) -> None:
    # ONNX Runtime runs no MaxPool whose windows miss elements at the end where they would need negative pads.
    misses = [((16, 2), [1, 1], [2, 2])] if (op_type, auto_pad[:4]) != ("MaxPool", "SAME") else []
    for extents, kernel, strides in (*misses, ((7, 11), [2, 3], [3, 2])):
        x = drawn((2, 3, *extents))
        graph = pool(op_type, x, auto_pad=auto_pad, ceil_mode=1, kernel_shape=kernel, strides=strides)
        assert_as(by_onnx_runtime(graph, x), graph, x)


@pytest.mark.parametrize("attributes", [None, {"kernel_shape": [9, 8]}])
def test_norms_of_halves_do_not_overflow(attributes: dict[str, object] | None) -> None:
    x = np.full((1, 2, 9, 8), 60, np.float16)
    for p in (2, 3):
        graph = pool("GlobalLpPool", x, p=p) if attributes is None else pool("LpPool", x, p=p, **attributes)
        np.testing.assert_allclose(backend.run_model(graph, [x])[0].ravel(), [60 * 72 ** (1 / p)] * 2, rtol=1e-3)


def test_a_dilated_window_is_padded_by_its_reach() -> None:
    x = drawn((1, 3, 10, 7))
    graph = pool("AveragePool", x, auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[3, 2], dilations=[2, 2])
    explicit = pool("AveragePool", x, pads=[2, 2, 2, 2], kernel_shape=[3, 3], strides=[3, 2], dilations=[2, 2])
    assert_as(by_onnx_runtime(explicit, x), graph, x)


@pytest.mark.parametrize(("op_type", "attributes"), [("GlobalLpPool", {"p": 3}), ("GlobalMaxPool", {})])
def test_pools_of_whole_planes_agree(op_type: str, attributes: dict[str, int]) -> None:
    x = drawn((2, 3, 5, 7))
    graph = one_node(op_type, shape=x.shape, **attributes)
    assert_as(by_onnx_runtime(graph, x), graph, x)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_maxima_of_other_floats_agree(dtype: str) -> None:
    x = drawn((1, 3, 7, 5), dtype)
    graph = pool("MaxPool", x, indices=True, kernel_shape=[3, 2], pads=[1, 1, 1, 0])
    expected = by_onnx_runtime(
        pool("MaxPool", x.astype("f4"), indices=True, kernel_shape=[3, 2], pads=[1, 1, 1, 0]), x.astype("f4")
    )
    assert_as([expected[0].astype(dtype), expected[1]], graph, x)


def unpool(indices: np.ndarray, wanted: list[int] | None = None, **attributes: object) -> onnx.ModelProto:
    operands = [indices, *([np.array(wanted)] if wanted else [])]
    return one_node(
        "MaxUnpool", *operands, shape=indices.shape, dtype=TensorProto.FLOAT, kernel_shape=[2, 3], **attributes
    )


@pytest.mark.parametrize("wanted", [None, [1, 2, 7, 13]])
def test_maxima_go_back_to_where_they_came_from(wanted: list[int] | None) -> None:
    x = drawn((1, 2, 6, 12))
    pooled = pool("MaxPool", x, indices=True, kernel_shape=[2, 3], strides=[2, 3])
    values, indices = by_onnx_runtime(pooled, x)
    graph = unpool(indices, wanted, strides=[2, 3])
    assert_as(ReferenceEvaluator(graph).run(None, {"x": values}), graph, values)


def test_an_index_out_of_range_writes_nowhere() -> None:
    indices = np.array([[[[0, 2**62], [-1, 11]]]])
    (output,) = backend.run_model(unpool(indices, strides=[2, 3]), [np.full((1, 1, 2, 2), 5, "f4")])
    assert output.shape == (1, 1, 4, 6) and np.flatnonzero(output).tolist() == [0, 11]
