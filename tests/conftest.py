"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
from arm_board import why_no_board

from tvmbridge.host import detect_host


def pytest_configure() -> None:
    """Take Ctrl-C as on a terminal: a shell starts a background job, and its children, with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def arm_board() -> None:
    """There is an emulated ARM board; where there is none, what needs it is not run, and the summary says so."""
    reason = why_no_board()
    if reason is not None:
        pytest.skip(f"NOT RUN: {reason}")


@pytest.fixture(scope="session")
def cuda_gpu() -> None:
    """There is a CUDA GPU; where there is none, what needs it is not run, and the summary says so."""
    host = detect_host(gpus=True)
    if not host.gpus:
        pytest.skip(f"NOT RUN: needs a CUDA GPU: {host.no_gpu_because}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line of its own for tests that want what is not here."""
    for marker, what in (("arm", "of ARM code"), ("gpu", "that need a CUDA GPU")):
        left_out = [report for report in terminalreporter.stats.get("skipped", ()) if marker in report.keywords]
        if left_out:
            terminalreporter.write_sep("!", f"{len(left_out)} tests {what} were NOT RUN", yellow=True)
            terminalreporter.write_line(str(left_out[0].longrepr[2]).removeprefix("Skipped: "), yellow=True)
