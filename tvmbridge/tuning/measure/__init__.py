"""Measurers: each times batches of candidates somewhere, and turns whatever happens to one into its record."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate


class Measurer(Protocol):
    """A context manager that measures; inside it, processes and connections are open.

    devices: how many candidates can be timed at the same time.
    """

    devices: int

    def __enter__(self) -> Measurer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def measure(self, candidates: Sequence[tuple[Candidate, float | None]]) -> list[TrialRecord]:
        """Time a batch of (candidate, best time known of its kernel in microseconds); one record each, in order.

        A candidate that crashes, hangs or cannot be compiled has an error in its record. TuningError where nothing
        can be measured any more.
        """
        ...
