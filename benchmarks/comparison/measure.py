"""Starts the process that measures one network, and makes a row of what it found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.build import Build
from comparison.figures import OURS, Row
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
    settings = {"threads": threads, "seconds": seconds, "rounds": rounds, "tvm_default": tvm_default}
    return Row(**row, **measure_bundles(build.model, {OURS: build.bundle}, settings))


def measure_bundles(model: Path, bundles: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a model's bundles, by program, beside its peers; what was found, in the words of a Row.

    settings: threads, seconds, rounds, tvm_default. The first bundle's folder takes the files of the exchange.
    """
    folder = next(iter(bundles.values())).parent
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)
    paths = {program: str(bundle) for program, bundle in bundles.items()}
    asked = {"model": str(model), "bundles": paths, "result": str(result), **settings}
    request.write_text(json.dumps(asked))
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
        return {"problem": f"not done after {_TIMEOUT_S:g} seconds"}
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return {"problem": f"failed with exit code {done.returncode}: {''.join(last)}"}
    return json.loads(result.read_text())
