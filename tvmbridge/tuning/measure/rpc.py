"""Times libraries on the devices of a TVM RPC tracker, however many there are and whatever becomes of them.

Each library is timed in a session of its own, which a child process holds: a session that is stuck costs a kill. The
tracker deals the devices out, so one that comes back, or a new one, is used without further ado.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tvmbridge.device.tracker import count_devices, why_not_rpc
from tvmbridge.errors import TuningError
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.measure.building import Built, name_candidate
from tvmbridge.tuning.measure.forks import ForkServer, JobEnd
from tvmbridge.tuning.measure.overlapped import Defer, Timed

CONNECT_TIMEOUT_S = 10.0
UPLOAD_TIMEOUT_S = 20.0
RUN_TIMEOUT_S = 20.0
NO_DEVICE_S = 60.0  # longer than any session lasts: whoever waits so long waits in vain
RETRIES = 2
_GRACE_S = 5.0  # a device ends a late session itself; one that has not done so by then is lost
_BACK_OFF_S = 0.5


@dataclasses.dataclass
class _Attempt:
    """A library on its way: how many devices it has lost so far, and how the last one went."""

    built: Built
    best_us: float | None
    on_timed: Callable[[Timed], None]
    lost: int = 0


class RpcTimer:
    """Keeps a session open on every device that the tracker has under the key, as long as libraries wait.

    devices: that were registered when it last asked.
    """

    def __init__(self, target: Target, forks: ForkServer, defer: Defer) -> None:
        assert isinstance(target.measure, RpcMeasure)
        self.devices = 0
        self._target, self._place, self._forks, self._defer = target, target.measure, forks, defer
        self._waiting: collections.deque[_Attempt] = collections.deque()
        self._sessions = 0
        self._had_device = self._not_before = 0.0

    def start(self) -> None:
        """TuningError where there is no tracker or no device."""
        if obstacle := why_not_rpc(self._target):
            raise self._error(obstacle)
        self._count()

    def stop(self) -> None:
        """Nothing: the fork server is its owner's."""

    def time(self, built: Built, best_us: float | None, on_timed: Callable[[Timed], None]) -> None:
        """Line a library up for whichever device is free first."""
        if not self._waiting and not self._sessions:
            self._had_device = time.monotonic()
        self._waiting.append(_Attempt(built, best_us, on_timed))
        self._fill()

    def check(self) -> None:
        """TuningError where no device has been had for a long time."""
        self._count()
        self._fill()
        if (self._waiting or self._sessions) and time.monotonic() - self._had_device > NO_DEVICE_S:
            obstacle = why_not_rpc(self._target) or f"none of the {self.devices} devices was free, or answered"
            raise self._error(f"{obstacle}, for {NO_DEVICE_S:g} s")

    def _count(self) -> None:
        try:
            self.devices = count_devices(self._place)
        except OSError:  # for a while: `check` knows how long
            self.devices = 0

    def _fill(self) -> None:
        # One more asks than there are devices, so that none waits for the next session to be asked for.
        while self._waiting and self._sessions <= self.devices and time.monotonic() >= self._not_before:
            attempt = self._waiting.popleft()
            self._sessions += 1
            arguments = {
                **name_candidate(attempt.built.candidate),
                "place": msgspec.to_builtins(self._place),
                "session_s": UPLOAD_TIMEOUT_S + RUN_TIMEOUT_S,
                "library": str(attempt.built.library),
                "parameters": attempt.built.parameters,
                "best_us": attempt.best_us,
            }
            limits_s = {
                "asking": None,
                "connecting": CONNECT_TIMEOUT_S,
                "uploading": UPLOAD_TIMEOUT_S,
                "running": UPLOAD_TIMEOUT_S + RUN_TIMEOUT_S + _GRACE_S,
            }
            self._forks.submit("time_there", arguments, limits_s, self._finisher(attempt))

    def _finisher(self, attempt: _Attempt) -> Callable[[JobEnd], None]:
        return lambda end: self._defer(lambda: self._finish(attempt, end))

    def _finish(self, attempt: _Attempt, end: JobEnd) -> None:
        if end.ended is None and end.result is None:
            raise self._forks.error()
        self._sessions -= 1
        result: dict[str, Any] = {"lost": "no answer"} if end.result is None else end.result
        if end.stage in ("uploading", "running"):
            self._had_device = time.monotonic()
        if "no_device" in result or end.stage not in ("uploading", "running"):
            # Says nothing of the candidate, and must not be asked again at once.
            self._not_before = time.monotonic() + _BACK_OFF_S
            self._waiting.appendleft(attempt)
        elif "lost" in result:
            attempt.lost += 1
            if attempt.lost <= RETRIES:
                self._waiting.append(attempt)  # last, so that one that breaks devices breaks them after all others
            else:
                attempt.on_timed(
                    Timed(
                        (), f"lost {attempt.lost} devices, the last, {end.device}, while {end.stage}: {result['lost']}"
                    )
                )
        elif "unable" in result:
            raise TuningError(f"{self._target.name} cannot be measured: {result['unable']}")
        elif "late" in result:
            attempt.on_timed(Timed((), f"{end.stage} took over {RUN_TIMEOUT_S:g} s"))
        else:
            attempt.on_timed(Timed(tuple(result.get("times_us", ())), result.get("error")))
        self._fill()

    def _error(self, obstacle: str) -> TuningError:
        tracker, key = self._place.tracker, self._place.key
        return TuningError(
            f"{self._target.name} cannot be measured: {obstacle}",
            hint=f"the tracker: python -m tvm.exec.rpc_tracker --port {tracker.rpartition(':')[2]}; on each device: "
            f"tvmbridge device serve --tracker {tracker} --key {key}",
        )
