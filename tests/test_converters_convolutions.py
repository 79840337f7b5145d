"""Convolutions of every form compute what ONNX Runtime or ONNX's reference computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import one_node, random_weight

from tvmbridge import backend
from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler

NUMBERS = {np.dtype("f4"): 1e-5, np.dtype("f8"): 1e-12, np.dtype("f2"): 5e-3}


def drawn(shape: tuple[int, ...], dtype: str = "f4", seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def by_onnx_runtime(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x})[0]


def assert_as(expected: np.ndarray, graph: onnx.ModelProto, x: np.ndarray) -> None:
    (output,) = backend.run_model(graph, [x])
    assert output.dtype == expected.dtype and output.shape == expected.shape
    tolerance = NUMBERS[expected.dtype]
    np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance)


SHAPES = {1: (2, 6, 17), 2: (2, 6, 13, 11), 3: (1, 6, 7, 5, 6)}
FORMS = {
    "plain": {},
    "strides and pads": {"strides": 2, "pads": (1, 2)},
    "dilations": {"dilations": 2, "pads": (2, 1)},
    "groups": {"group": 3},
    "depthwise": {"group": 6, "auto_pad": "SAME_UPPER"},
    "padded to the same extent above": {"auto_pad": "SAME_UPPER", "strides": 2},
    "padded to the same extent below": {"auto_pad": "SAME_LOWER", "strides": 3},
    "not padded": {"auto_pad": "VALID", "strides": 2},
}


def attributes(form: dict[str, object], rank: int) -> dict[str, object]:
    """A form's numbers for each of the axes."""
    found: dict[str, object] = {}
    for name, number in form.items():
        if name == "pads":
            found[name] = [number[0]] * rank + [number[1]] * rank
        else:
            found[name] = number if name in ("group", "auto_pad") else [number] * rank
    return found


@pytest.mark.parametrize(
    ("form", "rank"), [*((form, 2) for form in FORMS), *((form, rank) for form in list(FORMS)[3:6] for rank in (1, 3))]
)
def test_convolutions_of_any_rank_agree(form: str, rank: int) -> None:
    given = attributes(FORMS[form], rank)
    weight = random_weight((12, 6 // given.get("group", 1), *(3, 2, 4)[:rank]))
    graph = one_node("Conv", weight, random_weight((12,)), shape=SHAPES[rank], **given)
    x = drawn(SHAPES[rank])
    assert_as(by_onnx_runtime(graph, x), graph, x)


def test_a_convolution_that_reaches_further_than_its_stride_is_padded_to_the_same_extent() -> None:
    given = {"auto_pad": "SAME_UPPER", "dilations": [2, 3], "strides": [2, 1]}
    graph = one_node("Conv", random_weight((4, 6, 3, 2)), shape=SHAPES[2], **given)
    x = drawn(SHAPES[2])
    explicit = one_node(
        "Conv", random_weight((4, 6, 3, 2)), shape=SHAPES[2], **given | {"auto_pad": "NOTSET", "pads": [2, 1, 2, 2]}
    )
    assert_as(by_onnx_runtime(explicit, x), graph, x)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_convolutions_of_other_floats_agree(op_type: str, dtype: str) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = random_weight((6, 6, 3, 3)).astype(dtype)
    graph = one_node(op_type, weight, shape=(1, 6, 7, 5), dtype=number, strides=[2, 1], pads=[1, 0, 1, 1])
    x = drawn((1, 6, 7, 5), dtype)
    wide = one_node(op_type, weight.astype("f4"), shape=(1, 6, 7, 5), strides=[2, 1], pads=[1, 0, 1, 1])
    expected = by_onnx_runtime(wide, x.astype("f4")) if dtype == "f2" else by_reference(graph, x)
    assert_as(expected.astype(dtype), graph, x)


def by_reference(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(graph).run(None, {"x": x})[0]


TRANSPOSED = {
    "plain": {},
    "strides": {"strides": 3},
    "pads": {"strides": 2, "pads": (1, 0)},
    "output padding": {"strides": 2, "pads": (1, 1), "output_padding": 1},
    "dilations": {"strides": 2, "dilations": 2},
    "groups": {"strides": 2, "group": 3},
    "depthwise": {"strides": 2, "group": 6},
    "a smaller output": {"strides": 2, "output_shape": 8},
    "a smaller output, cut at the end": {"strides": 2, "output_shape": 9, "auto_pad": "SAME_UPPER"},
    "an output that nothing reaches the end of": {"strides": 3, "output_shape": 17},
    "as many as the strides ask for": {"strides": 2, "auto_pad": "SAME_UPPER"},
    "as many as the strides ask for, cut at the start": {"strides": 2, "auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize(("form", "rank"), [(form, 1 + i % 2) for i, form in enumerate(TRANSPOSED)])
def test_transposed_convolutions_of_any_output_agree(form: str, rank: int) -> None:
    given = attributes(TRANSPOSED[form], rank)
    shape = (2, 6, 5, 5)[: 2 + rank]
    weight = random_weight((6, 4, *(3,) * rank))
    graph = one_node("ConvTranspose", weight, random_weight((4 * given.get("group", 1),)), shape=shape, **given)
    x = drawn(shape)
    assert_as(by_onnx_runtime(graph, x), graph, x)


def test_a_transposed_convolution_over_three_axes_agrees() -> None:
    weight = random_weight((4, 2, 2, 3, 2))
    graph = one_node("ConvTranspose", weight, shape=(1, 4, 3, 2, 5), strides=[2, 1, 3], group=2)
    x = drawn((1, 4, 3, 2, 5))
    assert_as(by_onnx_runtime(graph, x), graph, x)


def test_what_no_input_reaches_is_the_bias() -> None:
    graph = one_node("ConvTranspose", np.ones((1, 1, 1), "f4"), np.ones(1, "f4"), shape=(1, 1, 2), strides=[4])
    assert backend.run_model(graph, [np.full((1, 1, 2), 5, "f4")])[0].ravel().tolist() == [6, 1, 1, 1, 6]
    graph = one_node(
        "ConvTranspose", np.ones((1, 1, 1), "f4"), np.ones(1, "f4"), shape=(1, 1, 2), strides=[4], output_shape=[7]
    )
    assert backend.run_model(graph, [np.full((1, 1, 2), 5, "f4")])[0].ravel().tolist() == [6, 1, 1, 1, 6, 1, 1]


def deformable(*, mask: bool, offsets: np.ndarray, group: int = 1, lots: int = 1) -> onnx.ModelProto:
    """Kernel [3, 2], x [1, 4, 7, 6], results [1, 6, 4, 6]."""
    weights = [random_weight((6, 4 // group, 3, 2)), offsets, random_weight((6,))]
    if mask:
        weights.append(np.random.default_rng(5).uniform(0, 1, (1, lots * 6, 4, 6)).astype("f4"))
    return one_node(
        "DeformConv",
        *weights,
        shape=(1, 4, 7, 6),
        opset=19,
        strides=[2, 1],
        pads=[1, 0, 1, 1],
        group=group,
        offset_group=lots,
    )


@pytest.mark.parametrize(("mask", "group", "lots"), [(False, 1, 1), (True, 2, 1), (True, 1, 2)])
def test_deformable_convolutions_agree(mask: bool, group: int, lots: int) -> None:
    offsets = (np.random.default_rng(3).normal(size=(1, lots * 12, 4, 6)) * 2).astype("f4")
    graph = deformable(mask=mask, offsets=offsets, group=group, lots=lots)
    x = drawn((1, 4, 7, 6))
    assert_as(by_reference(graph, x), graph, x)


def test_offsets_that_lead_anywhere_read_zeros() -> None:
    far = np.resize(np.array([np.nan, np.inf, -np.inf, 3e38, -1e20], "f4"), (1, 12, 4, 6))
    (output,) = backend.run_model(deformable(mask=False, offsets=far), [drawn((1, 4, 7, 6))])
    np.testing.assert_array_equal(output, np.broadcast_to(random_weight((6,))[:, None, None], (1, 6, 4, 6)))


def test_a_convolution_over_four_axes_is_refused_by_name() -> None:
    graph = one_node("Conv", random_weight((2, 2, 1, 1, 1, 1)), shape=(1, 2, 3, 3, 3, 3), dtype=TensorProto.FLOAT)
    with pytest.raises(UnsupportedOperatorError, match="4 axes"):
        import_onnx(graph)


def test_what_onnx_contradicts_itself_on_is_refused_by_name() -> None:
    given = {"auto_pad": "SAME_UPPER", "output_padding": [1], "strides": [2]}
    with pytest.raises(UnsupportedOperatorError, match="output_padding"):
        import_onnx(one_node("ConvTranspose", random_weight((2, 2, 3)), shape=(1, 2, 5), **given))
