"""The algebra of layouts: what is only read otherwise is the same tensor that NumPy would move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmbridge.lowering.layouts import Laid, axis_groups, permuted, reshaped, seen_through

pytestmark = pytest.mark.compiler

PRIMES = st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6)


def joined(factors: list[int], draw: st.DrawFn) -> tuple[int, ...]:
    """A shape of these factors in this order, neighbours joined at random and ones strewn in."""
    shape = [1]
    for factor in factors:
        if draw(st.booleans()):
            shape.append(factor)
        else:
            shape[-1] *= factor
    return tuple(shape if draw(st.booleans()) else shape[1:] if shape[0] == 1 and len(shape) > 1 else shape)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    factors = draw(PRIMES)
    return joined(factors, draw), joined(factors, draw)


@settings(max_examples=200, deadline=None)
@given(reshapes(), st.randoms(use_true_random=False))
def test_a_reshape_of_a_moved_tensor_reads_it_where_it_is_wanted(shapes, random):
    old, new = shapes
    order = list(range(len(old)))
    random.shuffle(order)
    tensor = np.arange(math.prod(old)).reshape(old)
    wanted, made = reshaped(Laid(None, tuple(order), permuted(old, tuple(order))), new)
    assert sorted(wanted) == sorted(order) and sorted(made.order) == list(range(len(new)))
    read = tensor.transpose(wanted).reshape(made.view)
    np.testing.assert_array_equal(read, tensor.reshape(new).transpose(made.order))


@settings(max_examples=200, deadline=None)
@given(reshapes(), st.data())
def test_an_operand_broadcasts_to_what_is_stored_as_to_what_is_seen(shapes, data):
    stored, view = shapes
    operand = tuple(extent if data.draw(st.booleans()) else 1 for extent in view)
    shape = seen_through(stored, view, operand)
    array = np.arange(math.prod(operand)).reshape(operand)
    if shape is not None:
        spread = np.broadcast_to(array.reshape(shape), stored).reshape(view)
        np.testing.assert_array_equal(spread, np.broadcast_to(array, view))
    else:
        assert operand != view and set(operand) != {1}


def test_runs_of_axes_are_the_smallest_that_a_reshape_maps_to_each_other():
    assert axis_groups((2, 12, 1, 5), (2, 3, 4, 5, 1)) == [([0], [0]), ([1], [1, 2]), ([3], [3])]
    assert axis_groups((2, 3, 4), (4, 6)) == [([0, 1, 2], [0, 1])]
    assert axis_groups((2, 0), (0, 7)) is None


def test_shuffled_channels_stay_within_the_last_axis():
    laid = Laid(None, (0, 2, 3, 1), (2, 5, 7, 6))
    order, split = reshaped(laid, (2, 3, 2, 5, 7))
    assert order == laid.order and split.view == (2, 5, 7, 3, 2)
    turned = Laid(None, tuple([0, 2, 1, 3, 4].index(axis) for axis in split.order), split.view)
    order, back = reshaped(turned, (2, 6, 5, 7))
    assert order == (0, 3, 4, 1, 2) and back.order == (0, 2, 3, 1)
