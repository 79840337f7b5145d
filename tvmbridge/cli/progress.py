"""What a long command shows while it works: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from tvmbridge.cli.output import show_us

if TYPE_CHECKING:
    from tvmbridge.pipeline import BuildEvent
    from tvmbridge.tuning.progress import TuneProgress

_PLAIN_EVERY_S = 10.0
_STAGES = {
    "import": "importing",
    "lower": "lowering",
    "tune": "tuning",
    "compile": "compiling",
    "verify": "verifying against ONNX Runtime",
    "write": "writing the bundle",
    "profile": "timing each kernel alone",
}


class BuildDisplay:
    """A context manager that shows stages and tuning on standard error.

    quiet: show nothing. targets: how many there are. resume: what to say when Ctrl-C ends the tuning.
    """

    def __init__(self, *, quiet: bool, targets: int, resume: str) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._status: Status | None = None
        self._resume = resume
        self._targets = targets
        self._done = 0
        self._tuning = False
        self._last_plain = 0.0

    def __enter__(self) -> BuildDisplay:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.quiet:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if kind is KeyboardInterrupt and self._tuning:
            click.echo(f"what was measured is kept: {self._resume}", err=True)

    def say(self, stage: str, subject: str) -> None:
        """A stage begins."""
        self._tuning = stage == "tune"
        text = f"{subject}{self._place(stage)}: {_STAGES[stage]}" if subject else _STAGES[stage]
        if self._status is not None:
            self._show_live(text)
        else:
            self._console.print(text, soft_wrap=True)

    def on_event(self, event: BuildEvent) -> None:
        """What `build` calls."""
        if event.tuning is not None:
            self.on_tuning(event.tuning)
        elif event.outcome is not None:
            self._done += 1
            if self._status is not None:  # elsewhere the table says it soon enough
                ended = "failed" if event.outcome.error is not None else "built"
                self._console.print(f"{event.target}: {ended} in {event.outcome.seconds:.1f} s", soft_wrap=True)
        else:
            self.say(event.stage, event.target)

    def on_kernels(self, done: int, of: int) -> None:
        """What `profile_kernels` calls."""
        if self._status is not None:
            self._show_live(f"{_STAGES['profile']}: {done} of {of}")

    def on_tuning(self, progress: TuneProgress) -> None:
        """What `tune` calls after every batch."""
        self._tuning = progress.ended is None
        gain = f"kernels {show_us(progress.untuned_us)} → {show_us(progress.best_us)}"
        failed = f", {progress.failed} failed" if progress.failed else ""
        spent = f"{progress.trials} trials in {progress.elapsed_s:.0f} s"
        known = f", {progress.known} more in the log" if progress.known else ""
        if progress.ended is not None:
            text = f"{progress.target}: tuned: {gain}, {spent}{known}{failed}: {progress.ended}"
            self._console.print(text, soft_wrap=True)
            return
        text = f"{progress.target}{self._place('tune')}: tuning: {gain}, {spent}{_left(progress)}{known}{failed}"
        now = time.monotonic()
        if self._status is not None:
            self._show_live(text)
        elif now - self._last_plain >= _PLAIN_EVERY_S:
            self._last_plain = now
            self._console.print(text, soft_wrap=True)

    def _show_live(self, text: str) -> None:
        assert self._status is not None
        line = Text(text)
        line.truncate(self._console.width - 3, overflow="ellipsis")  # a spinner and a space stand before it
        self._status.update(line)

    def _place(self, stage: str) -> str:
        return f" [{self._done + 1}/{self._targets}]" if self._targets > 1 and stage != "import" else ""


def _left(progress: TuneProgress) -> str:
    """How long it may still take, as far as the budget says."""
    budget, estimates = progress.budget, []
    if budget.minutes is not None:
        estimates.append(budget.minutes * 60 - progress.elapsed_s)
    if budget.trials is not None and progress.trials:
        left = budget.trials - progress.known - progress.trials
        estimates.append(left * progress.elapsed_s / progress.trials)
    return f", at most {max(0.0, min(estimates)):.0f} s left" if estimates else ""
