"""Cold starts beside ONNX Runtime's, their memory, and loading large weights: `python benchmarks/startup.py`.

    python benchmarks/startup.py [--runs N] [--large-mb MB] [--json FILE]

The digits model: each run is a new process that imports, loads and runs once; the two take turns. The large model: a
chain of matrix products with --large-mb of weights, loaded again and again, and by two processes at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tvmbridge
from tvmbridge.cli.output import print_table

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
COLD_SECONDS, COLD_MB, LARGE_LOAD_SECONDS, INSTALL_MB = 0.25, 60, 0.3, 60

_OURS = """
import sys, numpy as np, tvmbridge
session = tvmbridge.load(sys.argv[1])
session.run({"image": np.ones((1, 1, 8, 8), np.float32)})
assert not {"tvm", "onnx", "onnxruntime", "xgboost"} & set(sys.modules)
"""
_THEIRS = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"image": np.ones((1, 1, 8, 8), np.float32)})
"""
_EMPTY = "import sys, numpy as np; np.ones(1)"
_PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
_HELD = """
import sys, numpy as np, tvmbridge
session = tvmbridge.load(sys.argv[1])
(spec,) = session.inputs
session.run({spec.name: np.ones(spec.shape, np.float32)})
print("ready", flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True)
class Start:
    """One new process. memory_mb: its largest resident set."""

    seconds: float
    memory_mb: float


def main() -> int:
    """Measure, print, write; 1 where a target is missed."""
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tvmbridge-startup-") as name:
        folder = Path(name)
        os.environ["TVMBRIDGE_CACHE"] = str(folder / "cache")
        figures = {**measure_cold_starts(folder, arguments.runs), **measure_install()}
        if arguments.large_mb:
            figures |= measure_large(folder, arguments.large_mb)
    rows = _judge(figures)
    says = {None: "", True: "met", False: "MISSED"}
    print_table(["figure", "wanted", "found", ""], [[*texts, says[met]] for *texts, met in rows])
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"format": "tvmbridge.startup", "version": 1, **figures}, indent=2) + "\n")
    return 1 if any(met is False for *_, met in rows) else 0


def measure_cold_starts(folder: Path, runs: int) -> dict[str, float]:
    """Medians over new processes, ours and ONNX Runtime's in turns; and of one that imports NumPy alone."""
    bundle = folder / "digits.tvmb"
    report = tvmbridge.build(tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), ["native"], bundle, seconds=0.1)
    if report.failed:
        raise report.failed[0].error or RuntimeError("the digits model was not built")
    model = folder / "digits.onnx"
    model.write_bytes(DIGITS.read_bytes())
    programs = {"ours": (_OURS, bundle), "onnxruntime": (_THEIRS, model), "numpy": (_EMPTY, model)}
    starts: dict[str, list[Start]] = {name: [] for name in programs}
    for _ in range(runs + 1):
        for program, (code, path) in programs.items():
            starts[program].append(start_process(code, path))
    figures = {}
    for program, found in starts.items():
        counted = found[1:]  # the first one fills caches: the kernel's, Python's, ours
        figures[f"{program}_seconds"] = float(np.median([start.seconds for start in counted]))
        figures[f"{program}_memory_mb"] = float(np.median([start.memory_mb for start in counted]))
    return figures


def start_process(code: str, path: Path) -> Start:
    """Run a program to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code + _PEAK, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Start(time.perf_counter() - began, int(done.stdout) / 1024)


def measure_install() -> dict[str, float]:
    """The size of what a runtime-only install adds to Python and NumPy."""
    import importlib.metadata
    import re

    text = (Path(__file__).parents[1] / "requirements-runtime.txt").read_text()
    names = [match[0] for line in text.splitlines() if (match := re.match(r"[A-Za-z0-9_-]+", line))]
    size_bytes = sum(p.stat().st_size for p in Path(tvmbridge.__file__).parent.rglob("*") if p.is_file())
    for name in set(names) - {"numpy"}:
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            size_bytes += path.stat().st_size if path.is_file() else 0
    return {"install_mb": size_bytes / 1e6}


def measure_large(folder: Path, size_mb: int) -> dict[str, float]:
    """Loading a bundle of that many MB of weights once its digests are known, and what two processes hold of it."""
    model, bundle = folder / "large.onnx", folder / "large.tvmb"
    write_chain(model, size_mb)
    report = tvmbridge.build(tvmbridge.import_onnx(model), ["native"], bundle, seconds=0.1)
    if report.failed:
        raise report.failed[0].error or RuntimeError("the large model was not built")
    time.sleep(3)  # the file has to be older than what its times can tell apart
    seconds = []
    for _ in range(6):
        code = "import sys, time, tvmbridge; from tvmbridge.runtime import executable; t = time.perf_counter(); "
        code += "tvmbridge.load(sys.argv[1]); print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _HELD, str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        private_mb = [_private_mb(process.pid) for process in processes]
    finally:
        for process in processes:
            process.communicate()
    return {
        "large_mb": bundle.stat().st_size / 1e6,
        "large_first_load_seconds": seconds[0],
        "large_load_seconds": float(np.median(seconds[1:])),
        "large_private_mb": max(private_mb),
    }


def _private_mb(process_id: int) -> float:
    """What a process holds for itself alone."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


def write_chain(path: Path, size_mb: int) -> None:
    """A chain of eight matrix products with random weights of that size together."""
    import onnx

    width, generator = int((size_mb * 1e6 / 8 / 4) ** 0.5), np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(8):
        values = generator.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
        weights.append(onnx.numpy_helper.from_array(values, f"w{layer}"))
        nodes.append(onnx.helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"]))
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, width]) for name in ("x0", "x8")]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def _judge(figures: dict[str, float]) -> list[tuple[str, str, str, bool | None]]:
    """Name, what is wanted, what was found, and whether that is met; None where nothing is wanted."""

    def row(name: str, key: str, limit: float | None, unit: str) -> tuple[str, str, str, bool | None]:
        found = figures[key]
        wanted = "" if limit is None else f"≤ {limit:.3g} {unit}"
        return name, wanted, f"{found:.3g} {unit}", None if limit is None else found <= limit

    cold = min(COLD_SECONDS, figures["onnxruntime_seconds"])
    memory = min(COLD_MB, figures["onnxruntime_memory_mb"])
    rows = [
        row("cold process to first output", "ours_seconds", cold, "s"),
        row("the same, ONNX Runtime", "onnxruntime_seconds", None, "s"),
        row("importing NumPy alone", "numpy_seconds", None, "s"),
        row("memory of that process", "ours_memory_mb", memory, "MB"),
        row("the same, ONNX Runtime", "onnxruntime_memory_mb", None, "MB"),
        row("the same, NumPy alone", "numpy_memory_mb", None, "MB"),
        row("runtime install beyond NumPy", "install_mb", INSTALL_MB, "MB"),
    ]
    if "large_mb" in figures:
        rows += [
            row("large bundle", "large_mb", None, "MB"),
            row("its first load, digests checked", "large_first_load_seconds", None, "s"),
            row("its next loads", "large_load_seconds", LARGE_LOAD_SECONDS, "s"),
            row("private memory beside another process", "large_private_mb", figures["large_mb"] / 4, "MB"),
        ]
    return rows


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="new processes of each program; default: 20")
    parser.add_argument("--large-mb", type=int, default=500, help="weights of the large model; 0: leave it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
