"""The greatest and least elements of every kind of number, the first of equal ones first."""

from __future__ import annotations

import numpy as np
import pytest
from against_reference import assert_node

pytestmark = pytest.mark.compiler

INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [*INTEGERS, np.float16, np.float32, np.float64])
def test_elements_of_every_kind_are_ordered(dtype: type, largest: int) -> None:
    kind = np.dtype(dtype)
    drawn = np.random.default_rng(4).integers(0, 256, (3, 9 * kind.itemsize), np.uint8).view(kind)
    x = drawn if kind.kind in "iu" else np.random.default_rng(4).normal(size=(3, 9)).astype(dtype)
    x = np.concatenate([x, x[:, :4]], 1)
    order = np.argsort(x if not largest else (~x if kind.kind in "iu" else -x), axis=1, kind="stable")[:, :7]
    expected = [np.take_along_axis(x, order, 1), order]
    assert_node("TopK", [x, np.array([7])], opset=24, outputs=2, largest=largest, expected=expected)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_any_axis_is_ordered(axis: int) -> None:
    x = np.round(np.random.default_rng(4).normal(size=(4, 5, 6)) * 3).astype(np.float32)
    order = np.argsort(-x, axis=axis, kind="stable").take(range(3), axis)
    expected = [np.take_along_axis(x, order, axis), order]
    assert_node("TopK", [x, np.array([3])], opset=11, outputs=2, axis=axis, sorted=0, expected=expected)


def test_none_and_all_elements_can_be_asked_for() -> None:
    x = np.random.default_rng(4).normal(size=(2, 5)).astype(np.float32)
    assert_node("TopK", [x, np.array([5])], opset=11, outputs=2)
    nothing = [np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int64)]
    assert_node("TopK", [x, np.array([0])], opset=11, outputs=2, expected=nothing)


def test_infinities_are_ordered_like_other_numbers() -> None:
    x = np.array([[1, -np.inf, np.inf, 0, -np.inf, np.inf]], np.float32)
    expected = [np.array([[np.inf, np.inf, 1, 0, -np.inf, -np.inf]], np.float32), np.array([[2, 5, 0, 3, 1, 4]])]
    assert_node("TopK", [x, np.array([6])], opset=11, outputs=2, expected=expected)
