"""Resize gives what ONNX's reference gives, for every mode, coordinate and rounding, on ragged shapes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_models import one_node

import tvmbridge.backend as backend
from tvmbridge.errors import UnboundValueError
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SHAPE = (2, 3, 5, 7)


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(4).normal(size=shape) * 40).astype(dtype)


def resize(*scales: float, sizes: tuple[int, ...] = (), roi: tuple[float, ...] = (), **options: object):
    shape = options.pop("shape", SHAPE)
    opset = options.pop("opset", 19)
    given = (np.array(roi, np.float32) if roi else None, np.array(scales, np.float32) if scales else None)
    return one_node("Resize", *given, *([np.array(sizes)] if sizes else []), shape=shape, opset=opset, **options)


def assert_like_reference(graph: onnx.ModelProto, x: np.ndarray, tolerance: float = 1e-5) -> None:
    (output,) = backend.run_model(graph, [x])
    (expected,) = ReferenceEvaluator(graph).run(None, {"x": x})
    assert output.dtype == expected.dtype
    np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance * 40)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_samples_between_elements_agree(mode: str, coordinates: str) -> None:
    graph = resize(1, 1, 0.7, 2.3, mode=mode, coordinate_transformation_mode=coordinates)
    assert_like_reference(graph, numbers(SHAPE))


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_nearest_element_is_the_same_in_every_rounding(coordinates: str) -> None:
    x = numbers((1, 2, 6, 5))
    for rounding, scales in itertools.product(ROUNDINGS, [(1, 1, 0.5, 1.5), (1, 1, 2, 4)]):
        options = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        assert_like_reference(resize(*scales, mode="nearest", shape=x.shape, **options), x, 0)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("options", [{"antialias": 1}, {"exclude_outside": 1}, {"antialias": 1, "exclude_outside": 1}])
def test_antialiased_and_inner_weights_agree(mode: str, options: dict[str, int]) -> None:
    assert_like_reference(resize(1, 1, 0.43, 1.4, mode=mode, **options), numbers(SHAPE))


@pytest.mark.parametrize("sizes", [(2, 3, 10, 14), (2, 3, 9, 3), (2, 3, 1, 1), (4, 2, 5, 8)])
def test_sizes_agree(sizes: tuple[int, ...]) -> None:
    assert_like_reference(resize(sizes=sizes, mode="linear"), numbers(SHAPE))


@pytest.mark.parametrize("shape", [(11,), (3, 7), (1, 2, 3, 5, 4)])
def test_any_rank_is_resized(shape: tuple[int, ...]) -> None:
    assert_like_reference(resize(*[1.6] * len(shape), shape=shape, mode="linear"), numbers(shape))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_the_aspect_ratio_is_kept(policy: str) -> None:
    graph = resize(sizes=(9, 10), axes=[3, 2], keep_aspect_ratio_policy=policy, mode="linear")
    (output,) = backend.run_model(graph, [numbers(SHAPE)])
    assert output.shape == ((2, 3, 10, 14) if policy == "not_smaller" else (2, 3, 6, 9))


def test_a_crop_outside_takes_the_extrapolation_value() -> None:
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0, "mode": "linear"}
    roi = (0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7)
    assert_like_reference(resize(sizes=(2, 3, 4, 3), roi=roi, **options), numbers(SHAPE))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "float16"])
def test_every_type_is_resized_and_kept_in_its_range(dtype: str) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = np.abs(numbers((1, 1, 4, 6), "float64") * 3).clip(0, 255).astype(dtype)
    graph = resize(1, 1, 0.6, 1.7, mode="cubic", shape=x.shape, dtype=kind)
    assert_like_reference(graph, x, 1e-3 if dtype == "float16" else 1e-5)  # it finds coordinates in single precision


def test_an_old_upsample_repeats_elements() -> None:
    graph = one_node("Upsample", np.array([1, 1, 2, 3], np.float32), shape=SHAPE, opset=9, mode="nearest")
    x = numbers(SHAPE)
    (output,) = backend.run_model(graph, [x])
    np.testing.assert_array_equal(output, x.repeat(2, axis=2).repeat(3, axis=3))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("op_type", "opset", "scales"), [("Upsample", 9, (1, 1, 2, 1.5)), ("Resize", 10, (1, 1, 0.5, 1.5))]
)
def test_old_op_sets_sample_from_the_corner(op_type: str, opset: int, scales: tuple[float, ...], mode: str) -> None:
    graph = one_node(op_type, np.array(scales, np.float32), shape=SHAPE, opset=opset, mode=mode)
    (expected,) = ReferenceSession(graph, threads=1).run({"x": numbers(SHAPE)}).values()
    np.testing.assert_allclose(backend.run_model(graph, [numbers(SHAPE)])[0], expected, rtol=1e-5, atol=1e-4)


def test_a_single_sample_lies_on_the_first_element_as_pytorch_has_it() -> None:
    graph = resize(sizes=(2, 3, 3, 1), mode="cubic", coordinate_transformation_mode="pytorch_half_pixel")
    (expected,) = ReferenceSession(graph, threads=1).run({"x": numbers(SHAPE)}).values()
    np.testing.assert_allclose(backend.run_model(graph, [numbers(SHAPE)])[0], expected, rtol=1e-4, atol=1e-4)


def test_common_images_use_the_operator_that_can_be_laid_out() -> None:
    for options in ({"mode": "nearest", "nearest_mode": "floor"}, {"mode": "linear"}):
        assert "R.image.resize2d(" in str(import_onnx(resize(1, 1, 2, 2, **options)).module)


def test_scales_computed_at_run_time_are_asked_for_by_name() -> None:
    node = onnx.helper.make_node("Resize", ["x", "", "scales"], ["y"], name="the_node", mode="linear")
    inputs = [
        onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 4, 4)),
        onnx.helper.make_tensor_value_info("scales", TensorProto.FLOAT, (4,)),
    ]
    outputs = [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "small", inputs, outputs)
    found = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=8)
    with pytest.raises(UnboundValueError) as caught:
        import_onnx(found)
    assert caught.value.inputs == ("scales",)
