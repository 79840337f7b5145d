"""What a long command shows while it works: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.status import Status

from tvmbridge.cli.output import show_us

if TYPE_CHECKING:
    from tvmbridge.pipeline import BuildEvent
    from tvmbridge.tuning.tune import TuneProgress

_PLAIN_EVERY_S = 10.0
_STAGES = {
    "import": "importing",
    "lower": "lowering",
    "tune": "tuning",
    "compile": "compiling",
    "verify": "verifying against ONNX Runtime",
    "write": "writing the bundle",
}


class BuildDisplay:
    """A context manager that shows stages and tuning on standard error.

    quiet: show nothing. resume: what to say when Ctrl-C ends the work.
    """

    def __init__(self, *, quiet: bool, resume: str) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._status: Status | None = None
        self._resume = resume
        self._tuning_since: float | None = None
        self._last_plain = 0.0

    def __enter__(self) -> BuildDisplay:
        if self._console.is_terminal and not self._console.quiet:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if kind is KeyboardInterrupt and self._tuning_since is not None:
            click.echo(f"interrupted; what was measured is kept. {self._resume}", err=True)

    def say(self, stage: str, subject: str) -> None:
        """A stage begins."""
        text = f"{subject}: {_STAGES[stage]}" if subject else _STAGES[stage]
        if self._status is not None:
            self._status.update(text)
        else:
            self._console.print(text)

    def on_event(self, event: BuildEvent) -> None:
        """What `build` calls."""
        if event.tuning is not None:
            self.on_tuning(event.tuning)
        else:
            self.say(event.stage, event.target)

    def on_tuning(self, progress: TuneProgress) -> None:
        """What `tune` calls after every batch."""
        now = time.monotonic()
        self._tuning_since = self._tuning_since or now
        known = f" (+{progress.known} known)" if progress.known else ""
        text = (
            f"{progress.target}: tuning: {progress.trials} trials{known} in {progress.elapsed_s:.0f} s of "
            f"{progress.budget}, kernels {show_us(progress.untuned_us)} → {show_us(progress.best_us)}"
        )
        if progress.failed:
            text += f", {progress.failed} failed"
        if progress.ended is not None:
            self._console.print(f"{text}: {progress.ended}")
        elif self._status is not None:
            self._status.update(text)
        elif now - self._last_plain >= _PLAIN_EVERY_S:
            self._last_plain = now
            self._console.print(text)
