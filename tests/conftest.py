"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take Ctrl-C as on a terminal: a shell starts a background job, and its children, with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
