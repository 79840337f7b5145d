"""Starts the processes that the compared programs live in, and lets the programs take turns, a block each a round."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tvmbridge.child import child_command, child_environment

_BENCHMARKS = Path(__file__).parents[1]
BLOCK_S = 0.1
ANSWER_TIMEOUT_S = 900.0


class WorkerError(Exception):
    """A process that ended or did not answer; the message says how."""


class Worker:
    """One process with programs; a context manager. python: its interpreter, and path, what its PYTHONPATH has besides
    this folder; None: this Python, with tvmbridge."""

    def __init__(self, python: str = sys.executable, path: str | None = None) -> None:
        command = child_command("comparison.gpu_worker")
        environment = child_environment()
        search = os.pathsep.join(filter(None, [str(_BENCHMARKS), environment["PYTHONPATH"] if path is None else path]))
        self._process = subprocess.Popen(
            [python, *command[1:]],
            env={**environment, "PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._complaints: list[str] = []
        for read in (self._read_answers, self._read_complaints):
            threading.Thread(target=read, daemon=True).start()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip():
                self._complaints = [*self._complaints[-4:], line.strip()]

    def ask(self, what: str, timeout_s: float = ANSWER_TIMEOUT_S, **request: Any) -> dict[str, Any]:
        """The answer to a request; WorkerError where there is none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **request}) + "\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            self.kill()
            raise WorkerError(f"no answer after {timeout_s:.0f} s") from None
        except OSError:
            answer = ""
        if not answer:
            status = self._process.wait()
            last = self._complaints[-1] if self._complaints else "nothing said"
            raise WorkerError(f"its process ended with status {status}: {last}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def __enter__(self) -> Worker:
        """The worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.kill()


def time_programs_in_turns(
    workers: Mapping[str, Worker], *, seconds: float, rounds: int, until: float
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Microseconds of each call by program and round, and why a program fell out; a block of each a round.

    workers: by program, the process that has it started. seconds: in all, about; rounds: at least. until: the moment of
    time.monotonic() after which no further round begins, once there is one.
    """
    blocks: dict[str, list[list[float]]] = {program: [] for program in workers}
    failed: dict[str, str] = {}
    begun, done = time.monotonic(), 0
    while done < rounds or time.monotonic() < begun + seconds:
        if done and time.monotonic() >= until:
            break
        for program, worker in workers.items():
            if program in failed:
                continue
            try:
                answer = worker.ask("block", program=program, seconds=BLOCK_S)
            except WorkerError as exc:
                answer = {"error": str(exc)}
            if "us" in answer:
                blocks[program].append(answer["us"])
            else:
                failed[program] = f"failed: {answer['error']}"
        done += 1
    return {program: kept for program, kept in blocks.items() if program not in failed}, failed


def round_medians(blocks: Sequence[Sequence[float]]) -> list[float]:
    """The median call of each round."""
    return [sorted(block)[len(block) // 2] for block in blocks]
