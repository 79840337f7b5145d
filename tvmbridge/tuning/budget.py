"""How much a tuning run may spend: trials, minutes, whichever ends first, or as much as still brings something."""

from __future__ import annotations

import msgspec

from tvmbridge.errors import TuningError


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tuning run may spend on one target; the limit reached first ends it, and so does convergence.

    trials: candidates measured, those already in the log counted in; None for no such limit.
    minutes: wall-clock time of this run, the final check counted in; None for no such limit.
    until_converged: nothing but convergence ends the run: neither of the limits is set.
    """

    trials: int | None = None
    minutes: float | None = None
    until_converged: bool = False

    def __post_init__(self) -> None:
        limited = self.trials is not None or self.minutes is not None
        if self.until_converged and limited:
            raise TuningError(
                "a budget until convergence has no limit of trials or minutes",
                hint="a run with limits ends when it has converged, too",
            )
        if not self.until_converged and not limited:
            raise TuningError("a budget limits trials, minutes or both; this one limits nothing", hint="trials: 200")
        if self.trials is not None and self.trials < 0:
            raise TuningError(f"a budget of {self.trials} trials is negative")
        if self.minutes is not None and not 0 <= self.minutes < float("inf"):
            raise TuningError(f"a budget of {self.minutes} minutes is not a length of time")

    def __str__(self) -> str:
        limits = [f"{self.trials} trials"] if self.trials is not None else []
        limits += [f"{self.minutes:g} min"] if self.minutes is not None else []
        return " or ".join(limits) or "until converged"


EXPRESS = Budget(minutes=3)  # most of the gain
FULL = Budget(minutes=60)  # all of it, for most networks well before the hour is over
