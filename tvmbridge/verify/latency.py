"""Times a session, and others beside it, in a way that none disturbs another.

All keep their worker threads spinning for a while after a call, which on few cores slows whoever runs next. So they
take turns in blocks of some tenths of a second, and the first calls of a block do not count.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from tvmbridge.emulation import is_emulated

_BLOCK_S = 0.2
_SETTLE_S = 0.02
_SETTLE_CALLS = 2


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall-clock times of one call, microseconds: percentiles over all counted calls.

    reference_us: ONNX Runtime's median in the same run; ratio: the median of ours over theirs, block by block (below 1:
    we are faster); None where nothing was compared. emulated: whether all of it was timed under emulation.
    """

    calls: int
    median_us: float
    p90_us: float
    p99_us: float
    reference_us: float | None = None
    ratio: float | None = None
    emulated: bool = False


def measure_latency(
    call: Callable[[], object], reference: Callable[[], object] | None = None, *, seconds: float = 3.0
) -> Latency:
    """Time `call`, alternating with `reference` where one is given, for about `seconds` in all."""
    blocks = time_in_turns([call] if reference is None else [call, reference], seconds=seconds)
    ours = np.concatenate(blocks[0]) * 1e6
    median_us, p90_us, p99_us = (float(value) for value in np.percentile(ours, (50, 90, 99)))
    latency = Latency(len(ours), median_us, p90_us, p99_us, emulated=is_emulated())
    if reference is None:
        return latency
    theirs = np.concatenate(blocks[1]) * 1e6
    pairs = [np.median(a) / np.median(b) for a, b in zip(*blocks, strict=True)]
    return dataclasses.replace(latency, reference_us=float(np.median(theirs)), ratio=float(np.median(pairs)))


def time_in_turns(
    subjects: Sequence[Callable[[], object]], *, seconds: float, rounds: int = 1
) -> list[list[list[float]]]:
    """Time calls of every subject for about `seconds` in all, a block of each a round; at least `rounds` rounds.

    Seconds by subject, round and call. In one round all ran under nearly the same conditions: compare by rounds.
    """
    for subject in subjects:
        subject()
    blocks: list[list[list[float]]] = [[] for _ in subjects]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(blocks[0]) < rounds:
        for subject, kept in zip(subjects, blocks, strict=True):
            time.sleep(_SETTLE_S)
            kept.append(_time_block(subject))
    return blocks


def _time_block(subject: Callable[[], object]) -> list[float]:
    times: list[float] = []
    until = time.perf_counter() + _BLOCK_S
    while len(times) <= _SETTLE_CALLS or time.perf_counter() < until:
        before = time.perf_counter()
        subject()
        times.append(time.perf_counter() - before)
    return times[_SETTLE_CALLS:]
