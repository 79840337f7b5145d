"""Runs a bundle on a device that an RPC tracker lends; one that is lost or falls silent is left for another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tvmbridge.bundle import open_bundle
from tvmbridge.child import child_command, child_environment
from tvmbridge.device.tracker import list_devices, why_not_lent
from tvmbridge.errors import DeviceError, NoVariantError, TvmBridgeError
from tvmbridge.targets import RpcMeasure
from tvmbridge.verify.inputs import write_arrays
from tvmbridge.verify.latency import Latency

RUN_TIMEOUT_S = 1800.0
NO_DEVICE_S = 60.0
SILENT_S = 60.0  # a device tells its tracker every few seconds how it is
RETRIES = 2
_LOOK_EVERY_S = 2.0
_GRACE_S = 30.0  # for uploads, and for a device to end a session itself


@dataclasses.dataclass(frozen=True)
class Done:
    """How a run of `verify.worker` ended: its exit status, and what it wrote to standard output and error."""

    status: int
    said: str
    complained: str


def run_elsewhere(place: RpcMeasure, request: Mapping[str, Any]) -> Done:
    """Do on a device what `verify.worker` does with the request; the outputs come back to where it names them.

    The bundle is not blamed for a device that is lost or falls silent: another is asked, or the same once it is back.
    DeviceError where none can be had, or that was so three times.
    """
    if obstacle := why_not_lent(place):
        raise DeviceError(obstacle, hint=f"tvmbridge device serve --tracker {place.tracker} --key {place.key}")
    for attempt in range(RETRIES + 1):
        with tempfile.TemporaryDirectory(prefix="tvmbridge-elsewhere-") as name:
            folder = Path(name)
            asked = {**request, "place": msgspec.to_builtins(place), "borrowed": str(folder / "device.txt")}
            asked |= {"session_s": RUN_TIMEOUT_S, "no_device_s": NO_DEVICE_S}
            (folder / "request.json").write_text(json.dumps(asked))
            ended = _run(place, folder)
            borrowed = folder / "device.txt"
            device = borrowed.read_text() if borrowed.exists() else None
        if "status" in ended:
            return msgspec.convert(ended, Done)
        what = ended.get("unable") or ended.get("none")
        if what is not None:
            where = f"the device {device}" if device is not None else f"the tracker {place.tracker}, key {place.key!r}"
            raise DeviceError(f"{where}: {what}", hint=f"tvmbridge device list --tracker {place.tracker}")
        if attempt == RETRIES:
            raise DeviceError(
                f"lost {attempt + 1} devices of key {place.key!r}, the last, {device}: {ended['lost']}",
                hint=f"tvmbridge device list --tracker {place.tracker}",
            )
    raise AssertionError("unreachable")


def time_elsewhere(
    place: RpcMeasure,
    bundle: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    variant: str | None = None,
    seconds: float = 5.0,
    threads: int | None = None,
) -> tuple[str, int, Latency]:
    """The variant that fits the device best, or the named one: its name, its threads, and how long a call takes there.

    NoVariantError where none runs there, DeviceError where no device can be had.
    """
    with open_bundle(bundle) as opened:
        signature = opened.manifest.signature
    with tempfile.TemporaryDirectory(prefix="tvmbridge-elsewhere-") as name:
        folder = Path(name)
        write_arrays(folder / "in0.npz", {f"i{i}": feeds[spec.name] for i, spec in enumerate(signature.inputs)})
        files = {"samples": [str(folder / "in0.npz")], "outputs": [str(folder / "out0.npz")]}
        timing = {"variant": variant, "seconds": seconds, "threads": threads}
        done = run_elsewhere(place, {"bundle": str(bundle), **files, **timing})
    if done.status:
        raise TvmBridgeError(f"{bundle} failed on the device: {done.said.strip() or done.complained.strip()}")
    timed = json.loads(done.said)
    if "unsupported" in timed:
        raise NoVariantError(timed["unsupported"], hint="build a variant for the device: targets.yaml")
    return timed["variant"], timed["threads"], Latency(**timed["latency"])


def _run(place: RpcMeasure, folder: Path) -> dict[str, Any]:
    """What `elsewhere_worker` answers; {"lost"} where it has to be ended, or did not come to an answer."""
    process = subprocess.Popen(
        child_command("tvmbridge.verify.elsewhere_worker", str(folder / "request.json")),
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    silence = _Silence(place, folder / "device.txt")
    until = time.monotonic() + NO_DEVICE_S + RUN_TIMEOUT_S + _GRACE_S
    try:
        while True:
            try:
                said, complained = process.communicate(timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    return {"lost": f"no answer within {RUN_TIMEOUT_S:g} s"}
                if silence.seconds() > SILENT_S:
                    return {"lost": f"it has said nothing for {SILENT_S:g} s"}
    finally:
        process.kill()
        process.communicate()
    try:
        answer: dict[str, Any] = json.loads(said.strip().rpartition("\n")[2])
        return answer
    except ValueError:
        last = complained.strip().rpartition("\n")[2]
        return {"lost": last or f"the process that holds its session ended with status {process.returncode}"}


class _Silence:
    """How long a borrowed device has told its tracker nothing; 0 for one that never tells, as TVM's own server."""

    def __init__(self, place: RpcMeasure, borrowed: Path) -> None:
        self._place, self._borrowed = place, borrowed
        self._last: float | None = None
        self._changed = time.monotonic()

    def seconds(self) -> float:
        if not self._borrowed.exists():
            return 0.0
        with contextlib.suppress(OSError):  # a tracker that is away says nothing of the device
            address = self._borrowed.read_text()
            found = [d for d in list_devices(self._place.tracker) if (d.key, d.address) == (self._place.key, address)]
            told = found[0].details["at"] if found and found[0].details is not None else None
            if told is not None and told != self._last:
                self._last, self._changed = told, time.monotonic()
        return time.monotonic() - self._changed if self._last is not None else 0.0
