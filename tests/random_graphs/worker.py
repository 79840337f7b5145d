"""A process that judges graphs, so that a crash costs one graph; and how to talk to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.random_graphs.draw import Drawn, draw_seeded
from tests.random_graphs.files import read_graph, write_graph
from tests.random_graphs.judge import FAILURE, Verdict, judge
from tvmbridge.targets import parse_preset

_TIMEOUT_S = 120.0
# Compiled code and its memory stay until a process ends.
_GRAPHS_A_PROCESS = 200


class Worker:
    """Judges graphs one after another in a child that is replaced when it dies, hangs, or has done many."""

    def __init__(self, target: str = "native", threads: int = 1) -> None:
        self._target, self._threads = target, threads
        self._process: subprocess.Popen[str] | None = None
        self._done = 0

    def judge_seeded(self, seed: int, index: int) -> tuple[Verdict, tuple[str, ...]]:
        """Draw graph `index` of a campaign and judge it; the verdict and the graph's operators."""
        answer = self._ask({"seed": seed, "index": index})
        return Verdict(**answer["verdict"]), tuple(answer["operators"])

    def judge(self, drawn: Drawn) -> Verdict:
        """Judge this graph."""
        with tempfile.TemporaryDirectory(prefix="tvmbridge-graph-") as folder:
            write_graph(drawn, Path(folder))
            return Verdict(**self._ask({"folder": folder})["verdict"])

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        if self._done >= _GRAPHS_A_PROCESS:
            self.close()
        if self._process is None:
            self._process, self._done = self._start(), 0
        self._done += 1
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        operators: list[str] = []
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        while True:
            ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S)
            line = process.stdout.readline() if ready else ""
            if not line:
                break
            answer = json.loads(line)
            if "verdict" in answer:
                return {**answer, "operators": operators}
            operators = answer["operators"]
        why = f"no answer within {_TIMEOUT_S:g} s" if not ready else f"crash: {_ending(process.wait())}"
        self.close()
        return {"verdict": {"kind": FAILURE, "why": why}, "operators": operators}

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "TVM_NUM_THREADS": str(self._threads), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.random_graphs.worker", self._target]
        folder = Path(__file__).resolve().parents[2]
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [environment.get("PYTHONPATH")])])
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main(preset: str) -> int:
    """Answer the requests on standard input. What others print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    target = parse_preset(preset)
    for line in sys.stdin:
        request = json.loads(line)
        drawn = (
            read_graph(Path(request["folder"]))
            if "folder" in request
            else draw_seeded(request["seed"], request["index"])
        )
        print(json.dumps({"operators": drawn.operators}), file=answers)
        verdict = judge(drawn.model, drawn.feeds, drawn.expected, target)
        print(json.dumps({"verdict": dataclasses.asdict(verdict)}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
