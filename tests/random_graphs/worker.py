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

from tests.random_graphs.draw import Drawn, draw_seeded
from tests.random_graphs.files import is_written, read_graph, write_graph
from tests.random_graphs.judge import FAILURE, UNDRAWN, Verdict, judge
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

    def judge_seeded(self, seed: int, index: int) -> tuple[Verdict, Drawn | None]:
        """Draw graph `index` of a campaign and judge it; None where drawing it already crashes."""
        with tempfile.TemporaryDirectory(prefix="tvmbridge-graph-") as folder:
            verdict = self._ask({"folder": folder, "seed": seed, "index": index})
            drawn = read_graph(Path(folder)) if is_written(Path(folder)) else None
            return (verdict if drawn is not None else Verdict(UNDRAWN, verdict.why)), drawn

    def judge(self, drawn: Drawn) -> Verdict:
        """Judge this graph."""
        with tempfile.TemporaryDirectory(prefix="tvmbridge-graph-") as folder:
            write_graph(drawn, Path(folder))
            return self._ask({"folder": folder})

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

    def _ask(self, request: dict[str, object]) -> Verdict:
        if self._done >= _GRAPHS_A_PROCESS:
            self.close()
        if self._process is None:
            self._process, self._done = self._start(), 0
        self._done += 1
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        # One line is one answer: none can wait in this process's own buffer, where select does not see it.
        ready, _, _ = select.select([process.stdout], [], [], _TIMEOUT_S)
        line = process.stdout.readline() if ready else ""
        if line:
            fields = json.loads(line)
            return Verdict(fields["kind"], fields["why"], tuple(fields["operators"]))
        why = f"crash: {_ending(process.wait())}" if ready else f"no answer within {_TIMEOUT_S:g} s"
        self.close()
        return Verdict(FAILURE, why)

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
        folder = Path(request["folder"])
        if "seed" in request:
            write_graph(draw_seeded(request["seed"], request["index"]), folder)
        drawn = read_graph(folder)
        verdict = judge(drawn.model, drawn.feeds, drawn.expected, target)
        print(json.dumps(dataclasses.asdict(verdict)), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
