"""Leaves the suite out where its cases would be deselected: to list them takes five seconds."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whether to leave a file out; None: as everywhere."""
    return True if collection_path.name == "test_suite.py" and "not slow" in config.option.markexpr else None
