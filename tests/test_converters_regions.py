"""Pooled regions are ONNX Runtime's or the reference's, wherever the boxes lie, and no box reads outside its image."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, value

import tvmbridge.backend as backend
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

SHAPE = (2, 3, 9, 7)
# Inside, over the edge, far outside, turned over, of no size.
BOXES = np.array([[1.3, 2.2, 6.1, 8.9], [-3, -2, 9, 12], [20, 30, 25, 31], [5, 6, 2, 1], [3, 3, 3, 3]], np.float32)
IMAGES = np.array([0, 1, 1, 0, 1])


def image(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def align(dtype: str = "float32", opset: int = 22, **attributes: object) -> onnx.ModelProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = onnx.helper.make_node("RoiAlign", ["x", "boxes", "images"], ["y"], **attributes)
    inputs = [value("x", SHAPE, kind), value("boxes", (5, 4), kind), value("images", (5,), INT64)]
    return model([node], inputs, [value("y", None, kind)], opset=opset)


@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("samples", [0, 2])
def test_boxes_are_aligned(mode: str, coordinates: str, samples: int) -> None:
    options = {"output_height": 2, "output_width": 3, "sampling_ratio": samples, "spatial_scale": 0.7}
    graph = align(mode=mode, coordinate_transformation_mode=coordinates, **options)
    feeds = {"x": image(), "boxes": BOXES, "images": IMAGES}
    (expected,) = ReferenceEvaluator(graph).run(None, feeds)
    np.testing.assert_allclose(backend.run_model(graph, list(feeds.values()))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_boxes_of_other_types_are_aligned(dtype: str) -> None:
    graph = align(dtype, output_height=3, output_width=2)
    feeds = {"x": image(dtype), "boxes": BOXES[:2].repeat([3, 2], 0).astype(dtype), "images": IMAGES}
    (output,) = backend.run_model(graph, list(feeds.values()))
    (expected,) = ReferenceEvaluator(graph).run(None, feeds)
    assert output.dtype == expected.dtype
    np.testing.assert_allclose(output.astype("f8"), expected.astype("f8"), rtol=1e-2, atol=1e-2)


def test_boxes_of_old_op_sets_are_not_shifted_by_half_an_element() -> None:
    graph = align(opset=10, output_height=2, output_width=2, sampling_ratio=2)
    feeds = {"x": image(), "boxes": BOXES, "images": IMAGES}
    (expected,) = ReferenceSession(graph, threads=1).run(feeds).values()
    np.testing.assert_allclose(backend.run_model(graph, list(feeds.values()))[0], expected, rtol=1e-4, atol=1e-5)


def pool(**attributes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node("MaxRoiPool", ["x", "boxes"], ["y"], **attributes)
    return model([node], [value("x", SHAPE), value("boxes", (5, 5))], [value("y", None)])


def test_the_largest_elements_of_boxes_are_pooled() -> None:
    feeds = {"x": image(), "boxes": np.concatenate([IMAGES[:, None], BOXES], 1).astype(np.float32)}
    for scale in (1.0, 0.5):
        graph = pool(pooled_shape=[3, 2], spatial_scale=scale)
        (expected,) = ReferenceSession(graph, threads=1).run(feeds).values()
        np.testing.assert_array_equal(backend.run_model(graph, list(feeds.values()))[0], expected)


def test_boxes_of_no_numbers_and_images_that_are_not_there_read_nothing_outside() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], np.float32)
    boxes, x = np.stack([odd, odd[::-1], np.roll(odd, 2), np.roll(odd, 3)], 1), image()
    images = np.array([10**12, -5, 0, 1, 2])
    for mode in ("avg", "max"):
        (aligned,) = backend.run_model(align(mode=mode), [x, boxes, images])
        assert not np.any(abs(aligned) > 4 * abs(x).max())
    graph = pool(pooled_shape=[2, 2])
    (pooled,) = backend.run_model(graph, [x, np.concatenate([boxes[:, :1], boxes], 1)])
    assert set(pooled.ravel()) <= {0.0, *x.ravel()}
