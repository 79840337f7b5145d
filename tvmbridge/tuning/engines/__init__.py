"""Engines: each decides which candidates are measured next, and learns from what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate


class Engine(Protocol):
    """The search of one tuning run, over the tasks that it was made for."""

    def next_batch(self, limit: int) -> list[Candidate]:
        """At most `limit` candidates that nobody has measured; none where nothing more is expected to be won."""
        ...

    def learn(self, batch: Sequence[Candidate], records: Sequence[TrialRecord]) -> None:
        """Take in what measuring a batch gave, one record a candidate, in order: into the tasks, too."""
        ...
