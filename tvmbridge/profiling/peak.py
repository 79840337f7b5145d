"""What this machine can do at most on a number of threads: measured, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import msgspec

from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import TuningError
from tvmbridge.targets import Target

_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Peak:
    """float32 multiply-adds in registers, of two operations each, and streaming through memory."""

    gflops: float
    gb_per_s: float


def measure_peak(target: Target, threads: int) -> Peak:
    """Measure with code made for the target, which this machine can run; TuningError where that fails."""
    arguments = (msgspec.json.encode(target).decode(), str(threads))
    try:
        done = subprocess.run(
            child_command("tvmbridge.profiling.peak_worker", *arguments),
            env=child_environment(TVM_NUM_THREADS=str(threads), TVM_BIND_THREADS="0"),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise TuningError(f"measuring this machine's peak took over {_TIMEOUT_S:g} s") from exc
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise TuningError(f"measuring this machine's peak failed with status {done.returncode}: {last}")
    return Peak(**json.loads(done.stdout))
