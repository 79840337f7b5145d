"""While one thread captures a graph no other is at work on a GPU, and otherwise any number may be."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tvmbridge.runtime.gpu_turns import GpuTurns

SOON_S = 0.05


def started(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_any_number_of_threads_work_at_once() -> None:
    turns, together = GpuTurns(), threading.Barrier(3)

    def work() -> None:
        with turns:
            together.wait(timeout=10)

    threads = [started(work) for _ in range(3)]
    [thread.join(timeout=10) for thread in threads]
    assert not together.broken


def test_who_is_alone_waits_for_those_at_work_and_lets_others_wait() -> None:
    turns, order = GpuTurns(), []
    working, finish, capturing, release = (threading.Event() for _ in range(4))

    def work() -> None:
        with turns:
            working.set()
            finish.wait(timeout=10)
            order.append("worked")

    def capture() -> None:
        with turns.alone():
            order.append("captured")
            capturing.set()
            release.wait(timeout=10)
            order.append("released")

    def come_later() -> None:
        with turns:
            order.append("came later")

    threads = [started(work)]
    assert working.wait(timeout=10)
    threads.append(started(capture))
    assert not capturing.wait(timeout=SOON_S)
    finish.set()
    assert capturing.wait(timeout=10)
    threads += [started(come_later), started(come_later)]
    threads[-1].join(timeout=SOON_S)
    assert order == ["worked", "captured"]
    release.set()
    [thread.join(timeout=10) for thread in threads]
    assert order == ["worked", "captured", "released", "came later", "came later"]


def test_a_failure_ends_the_turn() -> None:
    turns = GpuTurns()
    with pytest.raises(ValueError), turns:
        raise ValueError
    with pytest.raises(ValueError), turns.alone():
        raise ValueError
    with turns.alone():
        pass
    with turns:
        pass
