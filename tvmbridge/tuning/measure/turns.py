"""Who may use the cores: compilers, or a kernel that is timed and as many compilers as do not disturb it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Queue:
    """How many candidates of a batch wait, compile, and are compiled; whether one is timed."""

    waiting: int
    compiling: int
    compiled: int
    timing: bool


@dataclasses.dataclass(frozen=True)
class Turns:
    """While a kernel is timed on `threads` threads of a machine with `cores` cores, the other cores may compile.

    Where there are no others, a batch is compiled as a whole before the first of it is timed.
    """

    cores: int
    threads: int

    @property
    def spare(self) -> int:
        """How many compilers do not disturb a measurement."""
        return max(0, self.cores - self.threads)

    def may_time(self, queue: Queue) -> bool:
        """Whether the timing of a compiled candidate may begin."""
        if queue.timing or not queue.compiled or queue.compiling > self.spare:
            return False
        return self.spare > 0 or not queue.waiting

    def compilers(self, queue: Queue) -> int:
        """How many may compile now: with a core to spare, a compiled candidate makes the others wait for its turn."""
        return self.spare if queue.timing or (queue.compiled and self.spare) else self.cores
