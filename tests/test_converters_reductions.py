"""Reductions over every set of axes, of every kind of number, with NaN and infinities where extremes meet them."""

from __future__ import annotations

import numpy as np
import pytest
from against_reference import assert_node
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.compiler

SUMS = ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
EXTREMES = ("ReduceMax", "ReduceMin")


def drawn(shape: tuple[int, ...], dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 3).astype(dtype)


def odd(dtype: type = np.float32) -> np.ndarray:
    """Rows with a NaN, of infinities alone, with zeros of both signs."""
    rows = drawn((5, 6), dtype)
    rows[0], rows[1, 2], rows[2], rows[3, ::2], rows[3, 1::2] = -np.inf, np.nan, np.inf, -0.0, 0.0
    return rows


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([*SUMS, *EXTREMES]),
    st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)
def test_any_axes_are_reduced(op_type: str, shape: list[int], data: st.DataObject, keepdims: bool) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    signed = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    assert_node(op_type, [drawn(tuple(shape)), np.array(signed)], keepdims=int(keepdims), tolerance=1e-4)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMax", "ReduceMean"])
def test_no_axes_are_all_axes_unless_the_model_says_otherwise(op_type: str) -> None:
    x = drawn((3, 5))
    assert_node(op_type, [x])
    assert_node(op_type, [x, np.array([], np.int64)], keepdims=0)
    assert_node(op_type, [x], noop_with_empty_axes=1)


def test_the_other_steps_are_taken_where_no_axis_is_reduced() -> None:
    x = drawn((3, 5))
    assert_node("ReduceSumSquare", [x], noop_with_empty_axes=1, expected=[x * x])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64, np.float64])
@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceMax"])
def test_every_kind_of_number_is_reduced(op_type: str, dtype: type) -> None:
    assert_node(op_type, [np.abs(drawn((3, 7, 2))).astype(dtype) + 1, np.array([1])])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_])
@pytest.mark.parametrize("op_type", EXTREMES)
def test_extremes_of_narrow_integers_and_truths_are_found(op_type: str, dtype: type) -> None:
    assert_node(op_type, [drawn((3, 7)).astype(np.int8).astype(dtype), np.array([1])], opset=20)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("op_type", EXTREMES)
def test_an_extreme_is_nan_where_a_row_has_one_and_infinite_where_all_are(op_type: str, dtype: type) -> None:
    assert_node(op_type, [odd(dtype), np.array([1])])


def test_the_logarithm_of_exponentials_neither_overflows_nor_loses_infinities() -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [-np.inf, -np.inf], [np.inf, 0], [np.nan, 0]], np.float32)
    right = np.array([1000 + np.log(2), -1000 + np.log(2), -np.inf, np.inf, np.nan], np.float32)
    assert_node("ReduceLogSumExp", [x, np.array([1])], keepdims=0, expected=[right])


def test_sums_of_halves_are_taken_in_single_precision() -> None:
    x = np.full((2, 300), 200, np.float16)
    assert_node("ReduceL2", [x, np.array([1])], keepdims=0, expected=[np.full(2, 200 * 300**0.5, np.float16)])
    assert_node("ReduceMean", [x, np.array([1])], keepdims=0, expected=[np.full(2, 200, np.float16)])


def test_the_mean_of_large_unsigned_numbers_wraps_nowhere_but_in_the_sum() -> None:
    x = np.array([[2**62, 2**62], [7, 8]], np.uint64)
    assert_node("ReduceMean", [x, np.array([1])], keepdims=0, expected=[np.array([2**62, 7], np.uint64)])


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_places_of_equal_extremes_are_the_first_or_the_last(op_type: str, last: int) -> None:
    x = np.round(drawn((4, 6, 3)))
    assert_node(op_type, [x], axis=-2, select_last_index=last, opset=13)
    assert_node(op_type, [x.astype(np.int64)], axis=1, keepdims=0, select_last_index=last, opset=13)


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_the_place_of_an_extreme_is_that_of_the_nan(op_type: str) -> None:
    assert_node(op_type, [odd()], axis=1, opset=13)


def test_hardmax_marks_the_first_greatest_element() -> None:
    assert_node("Hardmax", [np.round(drawn((3, 4, 5)))], axis=1, opset=13)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": 2}, {"axis": -2}])
def test_hardmax_of_old_op_sets_takes_all_axes_from_one_on_as_one(attributes: dict[str, int]) -> None:
    x = drawn((3, 4, 5))
    rows = x.reshape(int(np.prod(x.shape[: attributes.get("axis", 1)])), -1)
    right = (rows == rows.max(1, keepdims=True)).astype(np.float32).reshape(x.shape)
    assert_node("Hardmax", [x], opset=11, expected=[right], **attributes)
