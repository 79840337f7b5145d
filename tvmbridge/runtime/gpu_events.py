"""CUDA events, which take the time on the GPU, between the work that was asked of it before and after."""

from __future__ import annotations

import ctypes


class GpuEvents:
    """Events on CUDA's legacy default stream, of the GPU that the calling thread works with.

    cuda: a loaded library through which libcudart's functions are found.
    """

    def __init__(self, cuda: ctypes.CDLL) -> None:
        self._cuda = cuda
        self._events: list[ctypes.c_void_p] = []
        self._used = 0

    def record(self) -> ctypes.c_void_p:
        """The moment at which the GPU has done all that was asked of it until now."""
        if self._used == len(self._events):
            event = ctypes.c_void_p()
            self._check(self._cuda.cudaEventCreate(ctypes.byref(event)))
            self._events.append(event)
        event = self._events[self._used]
        self._used += 1
        self._check(self._cuda.cudaEventRecord(event, None))
        return event

    def seconds_between(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Of two events that the GPU has passed."""
        milliseconds = ctypes.c_float()
        self._check(self._cuda.cudaEventElapsedTime(ctypes.byref(milliseconds), start, end))
        return milliseconds.value / 1e3

    def reuse(self) -> None:
        """Forget the moments: the next ones take their events."""
        self._used = 0

    def close(self) -> None:
        """Give the events back."""
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._events, self._used = [], 0

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA events fail with error {status}")
