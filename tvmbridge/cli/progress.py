"""What a long command shows while it works: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.text import Text

from tvmbridge.cli.tuning_view import say_check, say_left, say_network, say_trials, show_seconds, table_kernels

if TYPE_CHECKING:
    from tvmbridge.pipeline import BuildEvent
    from tvmbridge.tuning.progress import TuneProgress

_PLAIN_EVERY_S = 10.0
_STAGES = {
    "import": "importing",
    "fetch": "downloading TVM's runtime for its machine, once",
    "lower": "lowering",
    "tune": "tuning",
    "compile": "compiling",
    "verify": "verifying against ONNX Runtime",
    "write": "writing the bundle",
    "check": "timing the best schedules in the whole network",
    "profile": "timing each kernel alone",
}


class BuildDisplay:
    """A context manager that shows stages and tuning on standard error.

    quiet: show nothing. targets: how many there are. resume: what to say when Ctrl-C ends the tuning.
    console: what to show it on; None: standard error.
    """

    def __init__(self, *, quiet: bool, targets: int, resume: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False, quiet=quiet)
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._line = ""
        self._progress: TuneProgress | None = None
        self._told = 0.0
        self._resume = resume
        self._targets = targets
        self._done = 0
        self._tuning = False
        self._last_plain = 0.0

    def __enter__(self) -> BuildDisplay:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.quiet:
            self._live = Live(console=self._console, get_renderable=self._view, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if kind is KeyboardInterrupt and self._tuning:
            click.echo(f"what was measured is kept: {self._resume}", err=True)

    def say(self, stage: str, subject: str) -> None:
        """A stage begins."""
        self._tuning = stage == "tune"
        text = f"{subject}{self._place(stage)}: {_STAGES[stage]}" if subject else _STAGES[stage]
        self._show_live(text)
        if self._live is None:
            self._console.print(text, soft_wrap=True)

    def on_event(self, event: BuildEvent) -> None:
        """What `build` calls."""
        if event.tuning is not None:
            self.on_tuning(event.tuning)
        elif event.fetched is not None:
            self._on_fetch(event.target, *event.fetched)
        elif event.outcome is not None:
            self._done += 1
            if self._live is not None:  # elsewhere the table says it soon enough
                ended = "failed" if event.outcome.error is not None else "built"
                self._console.print(f"{event.target}: {ended} in {event.outcome.seconds:.1f} s", soft_wrap=True)
        else:
            self.say(event.stage, event.target)

    def _on_fetch(self, target: str, so_far: int, in_all: int) -> None:
        """Where the download stands; in plain lines only that it has begun."""
        text = f"{target}{self._place('fetch')}: {_STAGES['fetch']}"
        self._show_live(f"{text}: {so_far / 1e6:.0f} of {in_all / 1e6:.0f} MB")
        if self._live is None and so_far == 0:
            self._console.print(f"{text} ({in_all / 1e6:.0f} MB)", soft_wrap=True)

    def on_kernels(self, done: int, of: int) -> None:
        """What `profile_kernels` calls."""
        self._show_live(f"{_STAGES['profile']}: {done} of {of}")

    def on_tuning(self, progress: TuneProgress) -> None:
        """What `tune` calls after every batch."""
        self._tuning = progress.ended is None
        now = time.monotonic()
        if progress.ended is not None:
            self._show_live(f"{progress.target}: tuned")
            spent = f"tuned in {show_seconds(progress.elapsed_s)} ({progress.ended})"
            gained = f"{say_network(progress)}, {say_trials(progress)}"
            self._console.print(f"{progress.target}: {spent}: {gained}{say_check(progress)}", soft_wrap=True)
        elif progress.stage == "check":
            self.say("check", progress.target)
            self._tuning = True
        elif self._live is not None:
            self._progress, self._told = progress, now
        elif now - self._last_plain >= _PLAIN_EVERY_S:
            self._last_plain = now
            self._console.print(f"{self._headline(progress)}, {say_trials(progress)}", soft_wrap=True)

    def _show_live(self, line: str) -> None:
        self._progress, self._line = None, line

    def _view(self) -> RenderableType:
        """What the terminal shows now; drawn again and again, so that the clock runs between two batches."""
        progress = self._progress  # once: another thread draws than the one that tells
        if progress is None:
            return self._spin(self._line)
        headline = self._spin(self._headline(progress, time.monotonic() - self._told))
        table = table_kernels(progress, self._console.width - 2, self._console.height - 3)
        return Group(headline, Padding(Group(self._cut(say_trials(progress)), table), (0, 0, 0, 2)))

    def _spin(self, text: str) -> Spinner:
        self._spinner.update(text=self._cut(text))
        return self._spinner

    def _cut(self, text: str) -> Text:
        line = Text(text)
        line.truncate(self._console.width - 3, overflow="ellipsis")  # a spinner and a space stand before it
        return line

    def _headline(self, progress: TuneProgress, waited_s: float = 0.0) -> str:
        place = self._place("tune")
        return f"{progress.target}{place}: tuning: {say_network(progress)}{say_left(progress, waited_s)}"

    def _place(self, stage: str) -> str:
        return f" [{self._done + 1}/{self._targets}]" if self._targets > 1 and stage != "import" else ""
