"""Normalisations of every form, beside ONNX's reference or what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from against_reference import assert_node

from tvmbridge.errors import UnsupportedOperatorError

pytestmark = pytest.mark.compiler


def drawn(*shape: int, dtype: type = np.float32, seed: int = 5) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 3 + 1).astype(dtype)


def channelwise(row: np.ndarray, rank: int) -> np.ndarray:
    return row.reshape(-1, *[1] * (rank - 2))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 1, 7)])
def test_batch_norms_in_training_normalise_by_the_batch_and_give_running_statistics(shape: tuple[int, ...]) -> None:
    x, (scale, shift, mean, variance) = drawn(*shape), np.abs(drawn(4, 3, seed=6))
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    own_mean, own_variance = x.mean(axes), x.var(axes)
    normal = (x - channelwise(own_mean, x.ndim)) / np.sqrt(channelwise(own_variance, x.ndim) + np.float32(1e-3))
    y = normal * channelwise(scale, x.ndim) + channelwise(shift, x.ndim)
    running = [0.75 * old + 0.25 * new for old, new in ((mean, own_mean), (variance, own_variance))]
    options = {"opset": 15, "outputs": 3, "training_mode": 1, "momentum": 0.75, "epsilon": 1e-3, "tolerance": 1e-4}
    assert_node("BatchNormalization", [x, scale, shift, mean, variance], expected=[y, *running], **options)


def test_batch_norms_of_op_set_9_give_the_statistics_of_the_batch_too() -> None:
    x, (scale, shift, mean, variance) = drawn(4, 3, 5), np.abs(drawn(4, 3, seed=6))
    own = [x.mean((0, 2)), x.var((0, 2))]
    y = (x - channelwise(own[0], 3)) / np.sqrt(channelwise(own[1], 3) + np.float32(1e-5))
    y = y * channelwise(scale, 3) + channelwise(shift, 3)
    running = [0.9 * mean + 0.1 * own[0], 0.9 * variance + 0.1 * own[1]]
    options = {"opset": 13, "outputs": 5, "tolerance": 1e-4}
    assert_node("BatchNormalization", [x, scale, shift, mean, variance], expected=[y, *running, *own], **options)


@pytest.mark.parametrize("types", ["f2 f2 f2", "f2 f4 f4", "f4 f4 f4", "f8 f8 f8", "f4 f4 f8", "f4 f8 f4"])
def test_batch_norms_take_parameters_and_statistics_of_other_types(types: str) -> None:
    of_x, of_scale, of_mean = map(np.dtype, types.split())
    x, (scale, shift) = drawn(2, 3, 4, 5, dtype=of_x), drawn(2, 3, dtype=of_scale)
    mean, variance = np.abs(drawn(2, 3, dtype=of_mean, seed=6))
    wide = [channelwise(row.astype("f8"), 4) for row in (scale, shift, mean, variance)]
    y = (x.astype("f8") - wide[2]) / np.sqrt(wide[3] + 1e-5) * wide[0] + wide[1]
    tolerance = 5e-2 if of_x == np.float16 else 1e-4
    assert_node(
        "BatchNormalization",
        [x, scale, shift, mean, variance],
        opset=15,
        expected=[y.astype(of_x)],
        tolerance=tolerance,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (1, 5, 1, 3, 2)])
def test_instance_norms_agree(shape: tuple[int, ...], dtype: type) -> None:
    x, scale, shift = drawn(*shape, dtype=dtype), drawn(shape[1], dtype=dtype), drawn(shape[1], dtype=dtype, seed=6)
    axes, wide = tuple(range(2, len(shape))), x.astype(np.float64)
    y = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    y = y * channelwise(scale, len(shape)) + channelwise(shift, len(shape))
    tolerance = 2e-2 if dtype is np.float16 else 1e-4
    assert_node("InstanceNormalization", [x, scale, shift], opset=22, expected=[y.astype(dtype)], tolerance=tolerance)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_layer_norms_give_mean_and_deviation_where_asked(axis: int, outputs: int) -> None:
    x = drawn(2, 3, 5)
    scale, shift = drawn(*x.shape[axis:], seed=6), drawn(*x.shape[axis:], seed=7)
    assert_node("LayerNormalization", [x, scale, shift], axis=axis, outputs=outputs, opset=17, tolerance=1e-4)
    assert_node("LayerNormalization", [x, scale], axis=axis, outputs=outputs, opset=17, tolerance=1e-4)


def test_layer_norms_broadcast_their_parameters() -> None:
    assert_node("LayerNormalization", [drawn(2, 3, 5), drawn(1), drawn(3, 1, seed=6)], axis=1, opset=17, tolerance=1e-4)


def test_layer_norms_of_halves_are_computed_in_single_precision() -> None:
    x = drawn(2, 300, dtype=np.float16) + np.float16(200)
    scale = drawn(300, dtype=np.float16)
    wide = x.astype(np.float64)
    y = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * scale
    assert_node("LayerNormalization", [x, scale], opset=17, expected=[y.astype(np.float16)], tolerance=1e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_group_norms_agree(dtype: type) -> None:
    x, scale, shift = drawn(2, 6, 5, 3, dtype=dtype), drawn(6, dtype=dtype), drawn(6, dtype=dtype, seed=6)
    groups = x.astype(np.float64).reshape(2, 2, -1)
    y = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    y = (y.reshape(x.shape) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)).astype(dtype)
    tolerance = 3e-2 if dtype is np.float16 else 1e-4
    assert_node("GroupNormalization", [x, scale, shift], opset=21, num_groups=2, expected=[y], tolerance=tolerance)


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_norms_agree(axis: int) -> None:
    x = drawn(2, 3, 5)
    assert_node("RMSNormalization", [x, drawn(*x.shape[axis:], seed=6)], axis=axis, opset=23, tolerance=1e-4)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_a_norm_divides_a_row_and_leaves_zeros(power: int, axis: int) -> None:
    x = drawn(3, 4, 5)
    x[1], x[:, 2], x[..., 3] = 0, 0, 0
    norm = np.linalg.norm(x, power, axis, keepdims=True)
    right = np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)
    assert_node("LpNormalization", [x], axis=axis, p=power, opset=22, expected=[right])


def test_norms_of_halves_do_not_overflow_and_norms_that_onnx_lacks_are_refused() -> None:
    x = np.array([[300, 400]], np.float16)
    assert_node("LpNormalization", [x], opset=22, expected=[np.array([[0.6, 0.8]], np.float16)], tolerance=1e-3)
    with pytest.raises(UnsupportedOperatorError, match="a norm of order 3"):
        assert_node("LpNormalization", [x.astype(np.float32)], p=3, opset=22)


@pytest.mark.parametrize("axes", [None, [0], [1, 2]])
def test_mean_variance_norms_agree(axes: list[int] | None) -> None:
    x, over = drawn(3, 2, 5, 4), tuple(axes or (0, 2, 3))
    right = (x - x.mean(over, keepdims=True)) / (x.std(over, keepdims=True) + np.float32(1e-9))
    attributes = {} if axes is None else {"axes": axes}
    assert_node("MeanVarianceNormalization", [x], opset=13, expected=[right], tolerance=1e-4, **attributes)


def test_data_that_hardly_vary_are_normalised_too() -> None:
    x = (1.877 + 1e-4 * np.random.default_rng(3).standard_normal((3, 5, 2, 2))).astype(np.float32)
    exact = x.astype(np.float64)
    exact -= exact.mean((2, 3), keepdims=True)
    exact /= np.sqrt((exact**2).mean((2, 3), keepdims=True)) + 1e-9
    assert_node(
        "MeanVarianceNormalization", [x], opset=13, expected=[exact.astype(np.float32)], tolerance=1e-2, axes=[2, 3]
    )


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 3), (2, 7, 3, 5), (1, 7, 2, 3, 2)])
@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_local_responses_are_taken_over_the_channels_beside(size: int, shape: tuple[int, ...]) -> None:
    x, total = drawn(*shape), np.zeros(shape, np.float32)
    for channel in range(shape[1]):
        first, last = max(0, channel - (size - 1) // 2), min(shape[1] - 1, channel + -(-(size - 1) // 2))
        total[:, channel] = (x[:, first : last + 1] ** 2).sum(1)
    right = x / (2 + 0.3 / size * total) ** 0.6
    options = {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 2.0, "opset": 13}
    assert_node("LRN", [x], expected=[right.astype(np.float32)], tolerance=1e-4, **options)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmaxes_of_every_float_agree(op_type: str, dtype: type) -> None:
    x = drawn(3, 4, 5, dtype=dtype)
    wide = x.astype(np.float64)
    right = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    right = (np.log(right) if op_type == "LogSoftmax" else right).astype(dtype)
    assert_node(op_type, [x], axis=1, opset=13, expected=[right], tolerance=5e-3 if dtype is np.float16 else 1e-5)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmaxes_of_old_op_sets_take_all_axes_from_one_on_as_one(op_type: str) -> None:
    x = drawn(3, 4, 5)
    right = np.exp(x) / np.exp(x).sum((1, 2), keepdims=True)
    assert_node(op_type, [x], axis=1, opset=11, expected=[np.log(right) if op_type == "LogSoftmax" else right])


def test_a_softmax_of_more_halves_than_a_half_can_count_is_no_zero() -> None:
    x = np.zeros((1, 70_001), np.float16)
    right = np.full(x.shape, 1 / 70_001, np.float16)
    assert_node("Softmax", [x], axis=-1, opset=13, expected=[right], tolerance=1e-7)
