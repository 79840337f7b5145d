"""Processes that a test starts, and whether they are gone."""

from __future__ import annotations

import psutil


def processes_below(pid: int) -> list[psutil.Process]:
    """Those that live: a dead one that nobody has asked for yet is none."""
    return [each for each in psutil.Process(pid).children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(processes: list[psutil.Process], timeout_s: float = 120.0) -> None:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert alive == []
