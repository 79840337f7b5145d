"""How much a tuning run may spend: trials, minutes, or whichever ends first."""

from __future__ import annotations

import msgspec

from tvmbridge.errors import TuningError


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tuning run may spend on one target; the limit reached first ends it.

    trials: candidates measured, those already in the log counted in; None for no such limit.
    minutes: wall-clock time of this run; None for no such limit.
    """

    trials: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.trials is None and self.minutes is None:
            raise TuningError("a budget limits trials, minutes or both; this one limits nothing", hint="trials: 200")
        if self.trials is not None and self.trials < 0:
            raise TuningError(f"a budget of {self.trials} trials is negative")
        if self.minutes is not None and not 0 <= self.minutes < float("inf"):
            raise TuningError(f"a budget of {self.minutes} minutes is not a length of time")

    def __str__(self) -> str:
        limits = [f"{self.trials} trials"] if self.trials is not None else []
        limits += [f"{self.minutes:g} min"] if self.minutes is not None else []
        return " or ".join(limits)
