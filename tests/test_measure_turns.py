"""Compilers and measurements share the cores without disturbing each other, and everything gets its turn."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.tuning.measure.turns import Queue, Turns


def play(turns: Turns, candidates: int, generator: random.Random) -> list[Queue]:
    """Every state of a batch in which what runs ends in any order."""
    waiting, compiling, compiled, timing = candidates, 0, 0, False
    states = []
    while waiting or compiling or compiled or timing:
        if turns.may_time(Queue(waiting, compiling, compiled, timing)):
            compiled, timing = compiled - 1, True
        while waiting and compiling < turns.compilers(Queue(waiting, compiling, compiled, timing)):
            waiting, compiling = waiting - 1, compiling + 1
        states.append(Queue(waiting, compiling, compiled, timing))
        assert compiling or timing, f"nothing runs, and nothing ever will: {states[-1]}"
        if timing and (not compiling or generator.random() < 0.5):
            timing = False
        else:
            compiling, compiled = compiling - 1, compiled + 1
    return states


@given(
    cores=st.integers(1, 9), threads=st.integers(1, 9), candidates=st.integers(0, 30), seed=st.integers(0, 2**32 - 1)
)
def test_a_kernel_is_timed_beside_no_more_compilers_than_there_are_other_cores(cores, threads, candidates, seed):
    states = play(Turns(cores, threads), candidates, random.Random(seed))
    for state in states:
        assert state.compiling <= cores
        if state.timing:
            assert state.compiling <= max(0, cores - threads)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 8)])
def test_with_all_cores_in_use_a_batch_is_compiled_before_it_is_timed(cores, threads):
    states = play(Turns(cores, threads), 7, random.Random(1))
    first = next(index for index, state in enumerate(states) if state.timing)
    assert all(not state.waiting and not state.compiling for state in states[first:])
    assert max(state.compiling for state in states) == min(cores, 7)


def test_with_cores_to_spare_compilers_go_on_beside_a_measurement():
    states = play(Turns(cores=4, threads=1), 12, random.Random(1))
    assert max(state.compiling for state in states if state.timing) == 3
    assert max(state.compiling for state in states) == 4
