"""tvmbridge on a GPU beside PyTorch and ONNX Runtime: builds, verifies, times, tunes: `python benchmarks/gpu.py`.

    python benchmarks/gpu.py --bring FOLDER --part-mb 60    # with a network: collect all that is needed
    python benchmarks/gpu.py --wheels FOLDER                # with a GPU, without a network: the same folder
    python benchmarks/gpu.py                                # with a GPU, where tvmbridge is installed
    python benchmarks/gpu.py --quick                        # a few minutes in all
    python benchmarks/gpu.py --time-limit 12 --minutes 1    # what is worth most, in twelve minutes

docs/cuda.md says how the figures are taken and how to read them. With --bring and --wheels it needs Python alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.bring import BringError, collect, make_environment
from comparison.gpu_plan import PRECISIONS, Step, plan

if TYPE_CHECKING:
    from comparison.goals import Goal
    from comparison.gpu_figures import GpuRow
    from tvmbridge.gpus import Gpu

FORMAT = "tvmbridge.gpu"
FORMAT_VERSION = 1
BATCHES = (1, 16)
MINUTES = 20.0
SECONDS = 5.0
ROUNDS = 5
QUICK_SECONDS = 1.0
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnxruntime", "numpy")
PEER_PACKAGES = ("torch", "triton", "onnxruntime-gpu", "tensorrt", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "numpy")


def main(arguments: Sequence[str]) -> int:
    """Collect, or set up and measure; 0 where all networks were built and are right, else 1."""
    place, rest = _place_parser().parse_known_args(arguments)
    options = _parse_arguments(arguments)
    try:
        if options.bring is not None:
            return bring(options)
        if place.wheels is not None:
            environment = place.environment or place.wheels / "environment"
            _say(f"an environment of the wheels in {place.wheels}: {environment}")
            python = str(make_environment(place.wheels, environment))
            # What PYTHONPATH names belongs to this Python, and goes to the peers, which run in it.
            peers = ["--peer-python", sys.executable, "--peer-path", os.environ.pop("PYTHONPATH", "")]
            os.execv(python, [python, str(Path(__file__).resolve()), *peers, *rest])
    except BringError as exc:
        _say(str(exc))
        return 1
    return measure(options)


def bring(options: argparse.Namespace) -> int:
    """Collect the wheels, and say what to take along."""
    part_bytes = None if options.part_mb is None else int(options.part_mb * 1e6)
    files = collect(options.bring, python=options.python, toolkit=not options.no_toolkit, part_bytes=part_bytes)
    for path in files:
        print(f"{path.stat().st_size / 1e6:7.1f} MB  {path}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:7.1f} MB  in all; the source tree comes besides")
    return 0


def measure(options: argparse.Namespace) -> int:
    """Do the steps, write each row when it is there, print the table."""
    import networks
    from comparison.gpu_goals import judge_gpu
    from comparison.gpu_run import GpuBenchmark, Settings
    from comparison.gpu_table import print_gpu_rows
    from comparison.table import print_goals
    from tvmbridge.host import detect_host

    started = time.monotonic()
    unknown = [name for name in options.networks or () if name not in networks.NETWORKS]
    if unknown:
        _say(f"no network {unknown[0]!r}; there are {', '.join(networks.NETWORKS)}")
        return 2
    host = detect_host(gpus=True)
    if not host.gpus:
        _say(f"no GPU: {host.no_gpu_because}")
        return 1
    names = options.networks or list(networks.NETWORKS)
    steps = plan(names, options.batches, options.precisions, peers=not options.quick, tune=options.minutes > 0)
    machine = {
        **describe_gpu_machine(options.peer_python, options.peer_path, host.gpus[0], host.cuda),
        "peer_device": options.peer_device,
    }
    comparable = not host.gpus[0].emulated and options.peer_device == "cuda"
    goals: list[Goal] = []

    def keep_row(_row: GpuRow | None, left_out: Sequence[Step] | None = None) -> None:
        rows = list(benchmark.rows.values())
        goals[:] = judge_gpu(rows, networks.NETWORKS, options.precisions, comparable=comparable)
        if options.json is not None:
            write_report(options.json, rows, goals, machine, options, steps if left_out is None else left_out)

    with tempfile.TemporaryDirectory(prefix="tvmbridge-gpu-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            folder=folder.resolve(),
            architecture=options.architecture or host.gpus[0].architecture,
            peer_python=options.peer_python,
            peer_path=options.peer_path,
            peer_device=options.peer_device,
            seconds=options.seconds,
            rounds=ROUNDS,
            minutes=options.minutes,
            engine=options.engine,
            jobs=options.jobs or max(1, host.cores // 4),
            deadline=math.inf if options.time_limit is None else started + options.time_limit * 60,
        )
        with GpuBenchmark(settings, keep_row, _say) as benchmark:
            left_out = benchmark.do(steps)
    rows = list(benchmark.rows.values())
    keep_row(None, left_out)
    if rows:
        print_gpu_rows(rows, left_out, machine)
        print_goals(goals)
    unbuilt = any(step.kind == "build" for step in left_out)
    return 0 if rows and not unbuilt and all(row.right for row in rows) else 1


def describe_gpu_machine(peer_python: str, peer_path: str, gpu: Gpu, cuda: str | None) -> dict[str, Any]:
    """What the figures depend on besides the programs' code."""
    from comparison.gpu_turns import Worker, WorkerError
    from comparison.machine import describe_machine
    from tvmbridge.gpus import read_gpu_states
    from tvmbridge.host import detect_host, find_tools, run_command

    try:
        with Worker(peer_python, peer_path) as worker:
            peer = worker.ask("describe", packages=PEER_PACKAGES)["versions"]
    except (OSError, WorkerError) as exc:
        peer = {"problem": f"{peer_python} does not run: {exc}"}
    states = read_gpu_states(run_command)
    return {
        **describe_machine(detect_host().cores, PACKAGES),
        "gpu": gpu.name,
        "architecture": gpu.architecture,
        "emulated": gpu.emulated,
        "cuda_of_driver": cuda,
        "state": dataclasses.asdict(states[0]) if states else None,
        "nvcc": next(tool.version for tool in find_tools() if tool.name == "nvcc"),
        "peer_versions": peer,
    }


def write_report(
    path: Path,
    rows: Sequence[GpuRow],
    goals: Sequence[Goal],
    machine: Mapping[str, Any],
    options: argparse.Namespace,
    left_out: Sequence[Step],
) -> None:
    """Write the report as it stands; at any moment the file is a whole one."""
    from comparison.gpu_figures import describe_gpu_row
    from tvmbridge.atomic_file import replacing

    report = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "machine": machine,
        "settings": {
            "seconds": options.seconds,
            "minutes": options.minutes,
            "time_limit_minutes": options.time_limit,
            "engine": options.engine,
        },
        "rows": [describe_gpu_row(row) for row in rows],
        "goals": [dataclasses.asdict(goal) for goal in goals],
        "left_out": [{"kind": step.kind, **dataclasses.asdict(step.case)} for step in left_out],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write((json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _place_parser() -> argparse.ArgumentParser:
    """What says where to run, and is not handed on to where it runs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("without a network")
    group.add_argument("--wheels", type=Path, metavar="FOLDER", help="run in an environment of what --bring collected")
    group.add_argument(
        "--environment", type=Path, metavar="FOLDER", help="where that environment goes; default: FOLDER/environment"
    )
    return parser


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], parents=[_place_parser()], allow_abbrev=False
    )
    bringing = parser.add_argument_group("with a network, for a machine without one")
    bringing.add_argument("--bring", type=Path, metavar="FOLDER", help="collect all that is needed there, and end")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    bringing.add_argument("--python", default=here, help=f"of the other machine; default: {here}")
    bringing.add_argument("--no-toolkit", action="store_true", help="the other machine has nvcc: do not bring it")
    bringing.add_argument("--part-mb", type=float, metavar="MB", help="the most that one file may have; default: any")
    parser.add_argument("--networks", nargs="+", metavar="NETWORK", help="default: all of benchmarks/networks.py")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="default: 1 16; --quick: 1")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--minutes", type=float, help=f"of tuning each row, 0: none; default: {MINUTES:g}; --quick: 0")
    parser.add_argument("--engine", default="templates", help="of tuning, as tvmbridge tune has it; default: templates")
    parser.add_argument("--seconds", type=float, help=f"of timing each row; default: {SECONDS:g}")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="for all of it: what is worth most is done")
    parser.add_argument("--quick", action="store_true", help="batch 1, eager PyTorch alone, no tuning, a second a row")
    parser.add_argument("--jobs", type=int, metavar="N", help="builds at a time; default: a quarter of the cores")
    parser.add_argument("--architecture", metavar="SM", help="to build for; default: that of GPU 0")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH", help="the Python with torch")
    parser.add_argument(
        "--peer-path",
        default=os.environ.get("PYTHONPATH", ""),
        metavar="PATHS",
        help="its PYTHONPATH; default: this one",
    )
    parser.add_argument("--peer-device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script only")
    parser.add_argument("--folder", type=Path, help="keep models, bundles and logs there, and go on from its logs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, after each row")
    options = parser.parse_args(arguments)
    options.batches = options.batches or ([1] if options.quick else list(BATCHES))
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.minutes = options.minutes if options.minutes is not None else (0.0 if options.quick else MINUTES)
    if any(batch < 1 for batch in options.batches):
        parser.error("--batches: a batch is at least 1")
    for name in ("minutes", "time_limit", "part_mb", "jobs"):
        value = getattr(options, name)
        if value is not None and (value < 0 or (value == 0 and name != "minutes")):
            parser.error(f"--{name.replace('_', '-')} {value:g}: more than nothing")
    if options.bring is not None and options.wheels is not None:
        parser.error("--bring is for the machine with a network, --wheels for the one without")
    if shutil.which(options.peer_python) is None:
        parser.error(f"--peer-python {options.peer_python}: no such program")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
