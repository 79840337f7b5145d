"""When a candidate has been timed often enough: what the interval promises, and what ends the repeats."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.tuning.measure.stopping import (
    FEWEST_REPEATS,
    MOST_REPEATS,
    MOST_S,
    believed,
    is_enough,
    is_hopeless,
    median_interval,
    undisturbed,
)

TIMES = st.lists(st.floats(0.1, 1e6), max_size=40)


@given(TIMES)
def test_an_interval_lies_around_the_median_of_the_repeats(times_us):
    interval = median_interval(times_us)
    assert (interval is None) == (len(times_us) < 5)
    if interval is not None:
        assert interval[0] <= median(times_us) <= interval[1]
        assert set(interval) <= set(times_us)


@pytest.mark.parametrize("count", [5, 6, 8, 13, 20])
def test_nine_intervals_in_ten_hold_the_true_median(count):
    generator = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        # A kernel of 100 µs whose repeats are disturbed now and then, so that its times have a long upper tail.
        times_us = 100 * np.exp(generator.normal(0, 0.05, count) + generator.exponential(1, count) * 0.2)
        lowest, highest = median_interval(times_us.tolist())  # type: ignore[misc]
        held += lowest <= 116.0 <= highest
    assert held / 2000 > 0.88


def test_the_true_median_of_that_distribution_is_what_the_test_says():
    generator = np.random.default_rng(0)
    drawn = 100 * np.exp(generator.normal(0, 0.05, 10**6) + generator.exponential(1, 10**6) * 0.2)
    assert abs(np.median(drawn) - 116.0) < 0.5


def test_five_repeats_that_agree_are_enough():
    times_us = [100.0, 101.0, 99.5, 100.2, 100.9]
    assert [is_enough(times_us[:count], 90.0, 0.01) for count in range(6)] == [False] * 5 + [True]
    assert is_enough(times_us, None, 0.01)


def test_a_clear_loser_is_given_up_however_much_its_times_differ():
    times_us = [150.0, 130.0, 190.0, 120.0, 170.0]
    assert is_enough(times_us, 110.0, 0.01)
    assert not is_enough(times_us, 125.0, 0.01)
    assert not is_enough(times_us, None, 0.01)


def test_a_long_repeat_costs_some_more_and_not_all():
    times_us = [100.0, 100.5, 180.0, 100.2, 100.4, 100.1, 100.3, 100.6]
    assert not is_enough(times_us[:5], 100.0, 0.01)
    assert is_enough(times_us, 100.0, 0.01)


@given(TIMES, st.floats(0.1, 1e6) | st.none())
def test_there_is_an_end_to_it(times_us, best_us):
    assert is_enough(times_us, best_us, MOST_S)
    assert is_enough([*times_us, *range(1, MOST_REPEATS + 1)], best_us, 0.0)


def quiet(*times_us: float) -> list[tuple[float, bool]]:
    return [(time_us, False) for time_us in times_us]


def disturbed(*times_us: float) -> list[tuple[float, bool]]:
    return [(time_us, True) for time_us in times_us]


def test_disturbed_repeats_count_for_nothing():
    repeats = [*disturbed(210.0, 80.0), *quiet(99.0, 100.0, 98.0, 97.0, 101.0), *disturbed(205.0)]
    assert undisturbed(repeats) == believed(repeats) == [99.0, 100.0, 98.0, 97.0, 101.0]


def test_without_enough_quiet_ones_the_shortest_repeats_count():
    repeats = [*disturbed(210.0, 180.0, 250.0, 190.0, 200.0, 205.0), *quiet(100.0)]
    assert believed(repeats) == [100.0, 180.0, 190.0, 200.0, 205.0]
    assert believed(disturbed(7.0)) == [7.0]


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.booleans()), min_size=1, max_size=60))
def test_something_always_counts(repeats):
    assert min(FEWEST_REPEATS, len(repeats)) <= len(believed(repeats)) <= len(repeats)
    assert median_interval(believed([*repeats, *quiet(*range(1, 6))])) is not None


def test_one_call_is_enough_for_what_cannot_win():
    assert is_hopeless(301.0, 100.0)
    assert not is_hopeless(299.0, 100.0)
    assert not is_hopeless(math.inf, None)
