"""Writes a network and builds it with the command line, as a user would; says how long and how much memory it took."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tvmbridge.child import child_command, child_environment

_NETWORKS = Path(__file__).parents[1] / "networks.py"
_SAMPLE_S = 0.1


@dataclasses.dataclass(frozen=True)
class Build:
    """One network as a file and as a bundle.

    seconds: of the whole command, verification included; memory_bytes: the most that it and the programs it started
    held at one time, at most. report: what the command said of its target. problem: why there is no bundle, None where
    there is one.
    """

    model: Path
    bundle: Path
    seconds: float | None = None
    memory_bytes: int | None = None
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def write_network(network: str, batch: int, folder: Path) -> Path:
    """Write the network into `folder`."""
    model = folder / f"{network}_b{batch}.onnx"
    script = [sys.executable, str(_NETWORKS), network, "--batch", str(batch), "--output", str(model)]
    # In a process of its own: what a process holds when it starts another counts as the other's at first.
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    return model


def build_network(network: str, batch: int, folder: Path) -> Build:
    """Write the network into `folder` and build it there for this machine, untuned."""
    bundle = folder / f"{network}_b{batch}.tvmb"
    return build_untuned(write_network(network, batch, folder), bundle, "--target", "native")


def build_untuned(model: Path, bundle: Path, *options: str, timeout_s: float = math.inf) -> Build:
    """Build the bundle of a model for the one target that the options say, in the bundle's folder."""
    build = Build(model, bundle)
    command = child_command("tvmbridge", "build", str(model), *options, "--no-tune", "--output", str(bundle), "--json")
    done = run_watched(command, bundle.parent, timeout_s=timeout_s)
    if done.returncode != 0 or not bundle.exists():
        return dataclasses.replace(build, problem=f"not built: {why_it_failed(done)}")
    (report,) = json.loads(done.output)["targets"]
    return dataclasses.replace(build, seconds=done.seconds, memory_bytes=done.memory_bytes, report=report)


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a command did. memory_bytes: as of a Build."""

    returncode: int
    output: str
    errors: str
    seconds: float
    memory_bytes: int


def run_watched(command: Sequence[str], folder: Path, *, timeout_s: float = math.inf) -> Finished:
    """Run a command in `folder`, where no targets.yaml changes what is built, and watch its memory.

    What takes longer than `timeout_s` is killed.
    """
    output, errors = folder / "build.out", folder / "build.err"
    memory_bytes = 0
    started = time.perf_counter()
    with (
        output.open("w") as out,
        errors.open("w") as err,
        subprocess.Popen(command, cwd=folder, env=child_environment(), stdout=out, stderr=err) as process,
    ):
        try:
            while process.poll() is None and time.perf_counter() < started + timeout_s:
                memory_bytes = max(memory_bytes, _held_bytes(process.pid))
                time.sleep(_SAMPLE_S)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            status = process.wait()
    return Finished(status, output.read_text(), errors.read_text(), seconds, memory_bytes)


def _held_bytes(process_id: int) -> int:
    """The sum of the highest resident sizes that a process and its living descendants have had.

    Not getrusage: on Linux a program's ru_maxrss begins at what the program that started it held.
    """
    try:
        root = psutil.Process(process_id)
        command = root.cmdline()
        # A child that has not begun its own program still shares this one's memory.
        family = [root, *(child for child in root.children(recursive=True) if child.cmdline() != command)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_highest_bytes(process.pid) for process in family)


def _highest_bytes(process_id: int) -> int:
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def why_it_failed(done: Finished) -> str:
    """The first error of the command's report, or the end of what it wrote."""
    try:
        targets = json.loads(done.output)["targets"]
        return next(target["error"]["message"] for target in targets if target["error"] is not None)
    except (ValueError, KeyError, StopIteration):
        last = [line for line in (done.errors + done.output).splitlines() if line.strip()][-1:]
        return last[0] if last else f"exit code {done.returncode}"
