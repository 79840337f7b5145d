"""Pads, crops and sequences reversed or updated give what ONNX Runtime or ONNX's reference gives, for any element."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, one_node, value

import tvmbridge.backend as backend
from tvmbridge.errors import UnboundValueError
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

SHAPE = (2, 3, 5)


def kind(dtype: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    drawn = np.random.default_rng(5).normal(size=shape) * 40
    return (drawn > 0) if dtype == "bool" else abs(drawn).astype(dtype) if dtype[0] == "u" else drawn.astype(dtype)


def assert_like_reference(graph: onnx.ModelProto, *feeds: np.ndarray) -> None:
    expected = ReferenceEvaluator(graph).run(None, dict(zip((e.name for e in graph.graph.input), feeds, strict=True)))
    for output, other in zip(backend.run_model(graph, list(feeds)), expected, strict=True):
        assert output.dtype == other.dtype
        np.testing.assert_array_equal(output, other)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bool", "int8", "uint16", "int64"])
def test_pads_of_every_type_and_mode_agree(mode: str, dtype: str) -> None:
    filler = np.array(1, dtype) if mode == "constant" else None
    pads = np.array([1, 0, 2, 0, 2, 4])
    graph = one_node("Pad", pads, filler, shape=SHAPE, dtype=kind(dtype), opset=19, mode=mode)
    assert_like_reference(graph, numbers(SHAPE, dtype))


def test_reflections_go_back_and_forth_where_a_pad_is_longer_than_its_axis() -> None:
    graph = one_node("Pad", np.array([0, 7, 0, 0, 3, 9]), shape=SHAPE, opset=19, mode="reflect")
    assert_like_reference(graph, numbers(SHAPE))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_negative_pads_crop_before_others_pad(mode: str) -> None:
    graph = one_node("Pad", np.array([0, -1, 1, 1, 0, -3]), shape=SHAPE, mode=mode)
    x = numbers(SHAPE)
    expected = np.pad(x[:, 1:, :2], [(0, 1), (0, 0), (1, 0)], mode)
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], expected)


def test_a_pad_may_crop_everything_and_fill_the_result() -> None:
    graph = one_node("Pad", np.array([0, 0, -5, 0, 0, 3]), np.array(2, np.float32), shape=SHAPE)
    np.testing.assert_array_equal(backend.run_model(graph, [numbers(SHAPE)])[0], np.full((2, 3, 3), 2, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_the_value_of_a_pad_may_be_computed_and_large(dtype: str) -> None:
    node = onnx.helper.make_node("Pad", ["x", "pads", "filler", "axes"], ["y"])
    inputs = [value("x", SHAPE, kind(dtype)), value("filler", (), kind(dtype))]
    weights = {"pads": np.array([2, 0, 1, 3]), "axes": np.array([-1, 0])}
    graph = model([node], inputs, [value("y", None, kind(dtype))], weights, opset=18)
    assert_like_reference(graph, numbers(SHAPE, dtype), np.array(2**62 + 1, dtype))
    constant = one_node("Pad", np.arange(6), np.array(2**62 + 1, dtype), shape=SHAPE, dtype=kind(dtype))
    assert_like_reference(constant, numbers(SHAPE, dtype))


def test_pads_that_are_not_bound_are_asked_for_by_name() -> None:
    node = onnx.helper.make_node("Pad", ["x", "pads"], ["y"])
    graph = model([node], [value("x", SHAPE), value("pads", (6,), INT64)], [value("y", None)])
    with pytest.raises(UnboundValueError) as caught:
        import_onnx(graph)
    assert caught.value.inputs == ("pads",)


@pytest.mark.parametrize("axes", [None, (-1, 0)])
@pytest.mark.parametrize("wanted", [(3, 2, 8), (1, 6, 5), (2, 3, 4)])
def test_crops_and_pads_are_centred(axes: tuple[int, ...] | None, wanted: tuple[int, ...]) -> None:
    attributes = {} if axes is None else {"axes": axes}
    graph = one_node("CenterCropPad", np.array(wanted)[: 3 if axes is None else 2], shape=SHAPE, opset=18, **attributes)
    assert_like_reference(graph, numbers(SHAPE))


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bool", "int8"])
def test_sequences_are_reversed_up_to_their_lengths(time: int, batch: int, dtype: str) -> None:
    node = onnx.helper.make_node("ReverseSequence", ["x", "lengths"], ["y"], time_axis=time, batch_axis=batch)
    shape = (4, 7, 3)
    inputs = [value("x", shape, kind(dtype)), value("lengths", (shape[batch],), INT64)]
    graph = model([node], inputs, [value("y", None, kind(dtype))])
    lengths = np.array([1, 0, 4, 3, 2, 4, 1])[: shape[batch]]
    assert_like_reference(graph, numbers(shape, dtype), np.minimum(lengths, shape[time]))


def test_a_sequence_longer_than_the_tensor_reads_nothing_outside() -> None:
    node = onnx.helper.make_node("ReverseSequence", ["x", "lengths"], ["y"])
    graph = model([node], [value("x", (5, 2)), value("lengths", (2,), INT64)], [value("y", None)])
    x = numbers((5, 2))
    (output,) = backend.run_model(graph, [x, np.array([10**9, -(10**9)])])
    np.testing.assert_array_equal(output, np.stack([x[::-1, 0], x[:, 1]], 1))


@pytest.mark.parametrize(("mode", "axis"), list(itertools.product(["linear", "circular"], [-2, 1, 3])))
def test_a_cache_is_updated_where_each_sample_says(mode: str, axis: int) -> None:
    shape = (3, 5, 4, 6)
    update = [2 if k == axis % 4 else extent for k, extent in enumerate(shape)]
    node = onnx.helper.make_node("TensorScatter", ["x", "update", "starts"], ["y"], mode=mode, axis=axis)
    inputs = [value("x", shape), value("update", update), value("starts", (3,), INT64)]
    graph = model([node], inputs, [value("y", None)], opset=24)
    starts = np.array([1, 0, shape[axis] - (2 if mode == "linear" else 1)])
    assert_like_reference(graph, numbers(shape), numbers(tuple(update)) + 1, starts)


def test_an_update_beyond_the_cache_writes_nothing_outside() -> None:
    node = onnx.helper.make_node("TensorScatter", ["x", "update", "starts"], ["y"], axis=1)
    inputs = [value("x", (3, 5)), value("update", (3, 2)), value("starts", (3,), INT64)]
    graph = model([node], inputs, [value("y", None)], opset=24)
    x, update = numbers((3, 5)), np.ones((3, 2), np.float32)
    (output,) = backend.run_model(graph, [x, update, np.array([4, 10**12, -(10**12)])])
    expected = x.copy()
    expected[0, 4] = 1
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_an_old_pad_of_any_float_is_filled_with_zeros(dtype: str) -> None:
    graph = one_node("Pad", shape=(2, 3), dtype=kind(dtype), opset=9, pads=[1, 0, 0, 2])
    x = numbers((2, 3), dtype)
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], np.pad(x, [(1, 0), (0, 2)]))


def test_pads_that_crop_agree_with_onnx_runtime() -> None:
    graph = one_node("Pad", np.array([0, -1, 2, 1, 0, -2]), shape=SHAPE, mode="edge", dtype=TensorProto.INT32)
    x = numbers(SHAPE, "int32")
    (expected,) = ReferenceSession(graph, threads=1).run({"x": x}).values()
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], expected)
