"""The process that measures one row, as its request file says: outputs first, then times in turns."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tvmbridge
from comparison.figures import NOT_INSTALLED, OPENVINO, REFERENCE, TVM_DEFAULT
from comparison.goals import MAX_RELATIVE
from comparison.programs import Arrays, Run, start_openvino, start_tvm_default
from tvmbridge.errors import TvmBridgeError
from tvmbridge.signature import ModelSignature
from tvmbridge.verify import ReferenceSession, compare_outputs, random_inputs
from tvmbridge.verify.latency import time_in_turns


def main(request_path: str) -> None:
    """Measure; write what was found to the file that the request names, in the words of figures.Row."""
    request = json.loads(Path(request_path).read_text())
    try:
        found = measure(request)
    except TvmBridgeError as exc:
        found = {"problem": f"failed: {exc.message}"}
    Path(request["result"]).write_text(json.dumps(found, allow_nan=False))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Compare every program's outputs with ONNX Runtime's and time those that are right.

    request: model (a path), bundles (paths, by program), threads, seconds, rounds; tvm_default: whether to time it too.
    """
    model, threads = Path(request["model"]), request["threads"]
    with contextlib.ExitStack() as stack:
        sessions = {
            program: stack.enter_context(tvmbridge.load(bundle, threads=threads))
            for program, bundle in request["bundles"].items()
        }
        session = next(iter(sessions.values()))
        signature = ModelSignature(session.inputs, session.outputs)
        feeds = random_inputs(model, signature, seed=1)
        reference = ReferenceSession(model, threads=threads)
        expected = reference.run(feeds)
        max_relative = 0.0
        for program, each in sessions.items():
            problem, error = _hold_against(expected, each.run(feeds), signature)
            if problem is not None:
                return {"max_relative": error, "problem": problem if len(sessions) == 1 else f"{program}: {problem}"}
            max_relative = max(max_relative, error or 0.0)
        runs: dict[str, Run] = {program: each.run for program, each in sessions.items()}
        runs[REFERENCE] = reference.run
        absent = _add_peers(runs, request, feeds, expected, signature)
        calls = [functools.partial(run, feeds) for run in runs.values()]
        blocks = time_in_turns(calls, seconds=request["seconds"], rounds=request["rounds"])
    rounds_us = {
        program: [float(np.median(block)) * 1e6 for block in kept] for program, kept in zip(runs, blocks, strict=True)
    }
    return {"max_relative": max_relative, "rounds_us": rounds_us, "absent": absent}


def _add_peers(
    runs: dict[str, Run], request: dict[str, Any], feeds: Arrays, expected: Arrays, signature: ModelSignature
) -> dict[str, str]:
    """Add to `runs` the other peers whose outputs are right; say of the rest why they are not there."""
    starts = {OPENVINO: start_openvino, **({TVM_DEFAULT: start_tvm_default} if request["tvm_default"] else {})}
    absent = {}
    for program, start in starts.items():
        if program == OPENVINO and importlib.util.find_spec("openvino") is None:
            absent[program] = NOT_INSTALLED
            continue
        try:
            run = start(Path(request["model"]), request["threads"])
            problem, _ = _hold_against(expected, run(feeds), signature)
        except Exception as exc:  # a peer that fails, in whatever way, costs its own column
            problem = f"failed: {type(exc).__name__}: {exc}"
        if problem is None:
            runs[program] = run
        else:
            absent[program] = problem
    return absent


def _hold_against(expected: Arrays, got: Arrays, signature: ModelSignature) -> tuple[str | None, float | None]:
    """What is wrong, or None; and the largest relative error, None where no number can say it."""
    comparison = compare_outputs(expected, got, signature)
    worst = comparison.worst
    error = worst.max_relative if np.isfinite(worst.max_relative) else None
    if comparison.passes(MAX_RELATIVE):
        return None, error
    return f"wrong: output {worst.name}: {worst.mismatch or f'{worst.max_relative:.1e} relative error'}", error


if __name__ == "__main__":
    main(sys.argv[1])
