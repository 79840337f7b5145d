"""When a candidate has been timed often enough, from its times so far and the best time known of its kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

HOPELESS = 3.0  # a call this many times slower than the best known cannot become the best
FEWEST_REPEATS = 5  # that have an interval
MOST_REPEATS = 20  # that count
MOST_S = 0.2
PRECISION = 0.02  # half of the interval's width, as a part of the median
_OUTSIDE = 0.1  # the median lies outside its interval at most this often


def median_interval(times_us: Sequence[float]) -> tuple[float, float] | None:
    """Between which of the times their distribution's median lies, nine times in ten; None for fewer than five.

    Order statistics: each time is above the median as often as not, so that all of n are with probability 2**-n. This
    asks nothing of the distribution, and disturbances, which lengthen some times, move the lower bound least.
    Source: David and Nagaraja, Order Statistics, section 7.1.
    """
    count, ordered = len(times_us), sorted(times_us)
    outside, rank = 2.0 * 0.5**count, 0
    while outside <= _OUTSIDE and 2 * rank < count:
        rank += 1
        outside += 2.0 * math.comb(count, rank) * 0.5**count
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def undisturbed(repeats: Sequence[tuple[float, bool]]) -> list[float]:
    """The times of (time, whether the system took a CPU from the kernel meanwhile) that nothing disturbed."""
    return [time_us for time_us, disturbed in repeats if not disturbed]


def believed(repeats: Sequence[tuple[float, bool]]) -> list[float]:
    """The times that count: the undisturbed ones, or where those are too few for an interval the shortest of all.

    What others use of the machine makes a time longer and never shorter.
    """
    quiet = undisturbed(repeats)
    return quiet if len(quiet) >= FEWEST_REPEATS else sorted(time_us for time_us, _ in repeats)[:FEWEST_REPEATS]


def is_hopeless(call_us: float, best_us: float | None) -> bool:
    """Whether one call says enough."""
    return best_us is not None and call_us > HOPELESS * best_us


def is_enough(times_us: Sequence[float], best_us: float | None, spent_s: float) -> bool:
    """Whether the repeats so far decide: clearly slower than the best known, or known precisely, or at the limit."""
    if len(times_us) >= MOST_REPEATS or spent_s >= MOST_S:
        return True
    interval = median_interval(times_us)
    if interval is None:
        return False
    lowest, highest = interval
    if best_us is not None and lowest > best_us:
        return True
    return (highest - lowest) / 2 <= PRECISION * median(times_us)
