"""Tunes one network as a user would, in two steps of one log, and keeps a bundle of each step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.build import run_watched, why_it_failed
from tvmbridge.child import child_command


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One network after a step of tuning.

    trials, seconds: of the step, the final check and nothing else counted in; known: trials that the log had before.
    untuned_us, tuned_us: of the whole network, as the final check saw them; None where there was none.
    command_seconds: of the whole command, building and verifying too. problem: why there is no bundle.
    """

    bundle: Path
    trials: int = 0
    known: int = 0
    failed: int = 0
    seconds: float = 0.0
    ended: str = ""
    untuned_us: float | None = None
    tuned_us: float | None = None
    command_seconds: float = 0.0
    problem: str | None = None

    @property
    def trials_per_second(self) -> float:
        """Of this step."""
        return self.trials / self.seconds if self.seconds else 0.0


def tune_network(
    model: Path,
    log: Path,
    bundle: Path,
    *budget: str,
    target: Sequence[str] = ("--target", "native"),
    timeout_s: float = math.inf,
) -> Tuned:
    """Build `bundle` with `log`, spending the budget that the options say on the one target that `target` says."""
    options = [*target, "--log", str(log), "--output", str(bundle), "--json", *budget]
    command = child_command("tvmbridge", "build", str(model), *options)
    done = run_watched(command, bundle.parent, timeout_s=timeout_s)
    if done.returncode != 0 or not bundle.exists():
        return Tuned(bundle, problem=f"not tuned: {why_it_failed(done)}")
    (outcome,) = json.loads(done.output)["targets"]
    if outcome["tuning"] is None:
        return Tuned(bundle, problem=f"not tuned: {outcome['untuned_because']}")
    tuning: dict[str, Any] = outcome["tuning"]
    check = tuning["check"] or {}
    return Tuned(
        bundle,
        trials=tuning["trials"],
        known=tuning["known"],
        failed=tuning["failed"],
        seconds=tuning["elapsed_s"],
        ended=tuning["ended"],
        untuned_us=check.get("untuned_us"),
        tuned_us=check.get("tuned_us"),
        command_seconds=done.seconds,
    )


def retune_seconds(model: Path, log: Path, trials: int) -> float | None:
    """How long the same tuning takes where the log has it all; None where it fails or measures something."""
    options = ["--target", "native", "--log", str(log), "--trials", str(trials), "--json"]
    done = run_watched(child_command("tvmbridge", "tune", str(model), *options), model.parent)
    if done.returncode != 0 or json.loads(done.output)["targets"][0]["trials"] != 0:
        return None
    return done.seconds
