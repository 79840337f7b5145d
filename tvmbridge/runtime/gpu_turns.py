"""Keeps this process's own work on GPUs out of the capture of a CUDA graph, which any of it would break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class GpuTurns:
    """A context manager that any number of threads enter for work on a GPU, while none is `alone`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = False

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._working += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._working -= 1
            if not self._working:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other thread is at work: those that are finish first, those that come wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._working)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


# CUDA looks at all threads of a process, whichever session they work for.
GPU_TURNS = GpuTurns()
