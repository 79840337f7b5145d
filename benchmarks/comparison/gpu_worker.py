"""The process that programs of the GPU benchmark live in: takes requests, one JSON document a line, and answers each.

It runs in the Python that has the program, ours or that of torch, and imports what the request names alone. Programs of
several such processes take turns block by block (`gpu_turns`), so that no two use the GPU at once.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from comparison.gpu_programs import NotThereError, Running, start

SETTLE_S = 0.02
SETTLE_CALLS = 2


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    running: dict[str, Running] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _ACTIONS[request["do"]](running, request)
        except NotThereError as exc:
            answer = {"absent": str(exc)}
        except Exception as exc:  # whatever a program raises is its own failure, and another may go on
            answer = {"error": f"{type(exc).__name__}: {' '.join(str(exc).split())[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(running: dict[str, Running], request: Mapping[str, Any]) -> dict[str, Any]:
    """Start the program, run it once on the feeds and write its outputs."""
    with np.load(request["feeds"]) as arrays:
        feeds = {name: arrays[f"a{index}"] for index, name in enumerate(request["inputs"])}
    before = time.perf_counter()
    program = start(request["program"], request, feeds)
    results = program.outputs()
    seconds = time.perf_counter() - before
    np.savez(request["results"], **{f"a{index}": results[name] for index, name in enumerate(request["outputs"])})
    running[request["program"]] = program
    return {"seconds": seconds}


def _block(running: dict[str, Running], request: Mapping[str, Any]) -> dict[str, Any]:
    program = running[request["program"]]
    program.prepare()
    return {"us": [seconds * 1e6 for seconds in time_block(program.call, request["seconds"])]}


def time_block(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for about `seconds`, after the calls in which caches fill and clocks rise."""
    before = time.perf_counter()
    calls = 0
    while calls < SETTLE_CALLS or time.perf_counter() < before + SETTLE_S:
        call()
        calls += 1
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return times


def _stop(running: dict[str, Running], request: Mapping[str, Any]) -> dict[str, Any]:
    """Let go of all programs and what they hold of the device."""
    running.clear()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.compiler.reset()
    gc.collect()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {}


def _describe(running: dict[str, Running], request: Mapping[str, Any]) -> dict[str, Any]:
    """The versions of what this Python has, by name."""
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in request["packages"]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions}


_ACTIONS: dict[str, Callable[[dict[str, Running], Mapping[str, Any]], dict[str, Any]]] = {
    "start": _start,
    "block": _block,
    "stop": _stop,
    "describe": _describe,
}


if __name__ == "__main__":
    main()
