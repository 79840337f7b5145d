"""Starts the process that measures one row, and makes the row of what it found."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from comparison.build import Build
from comparison.figures import Row
from tvmbridge.child import child_command, child_environment

_BENCHMARKS = Path(__file__).parents[1]
_TIMEOUT_S = 1800.0


def measure_row(
    build: Build, network: str, batch: int, threads: int, *, seconds: float, rounds: int, tvm_default: bool
) -> Row:
    """Measure one network in a process of its own; what goes wrong there is the row's problem."""
    row = {
        "network": network,
        "batch": batch,
        "threads": threads,
        "build_seconds": build.seconds,
        "build_memory_bytes": build.memory_bytes,
    }
    if build.problem is not None:
        return Row(**row, problem=build.problem)
    folder = build.bundle.parent
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)
    asked = {"model": build.model, "bundle": build.bundle, "result": result}
    settings = {"threads": threads, "seconds": seconds, "rounds": rounds, "tvm_default": tvm_default}
    request.write_text(json.dumps({**{key: str(path) for key, path in asked.items()}, **settings}))
    environment = child_environment()
    search = os.pathsep.join([str(_BENCHMARKS), environment["PYTHONPATH"]])
    try:
        done = subprocess.run(
            child_command("comparison.worker", str(request)),
            env={**environment, "PYTHONPATH": search},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Row(**row, problem=f"not done after {_TIMEOUT_S:g} seconds")
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return Row(**row, problem=f"failed with exit code {done.returncode}: {''.join(last)}")
    return Row(**row, **json.loads(result.read_text()))
