"""Untuned tvmbridge beside ONNX Runtime and OpenVINO, all in float32: `python benchmarks/peers.py`.

    python benchmarks/peers.py [NETWORK ...] [--threads 1 2] [--seconds S] [--json FILE] [--chart FILE]

docs/benchmarks.md says how the figures are taken and how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networks
from comparison.build import build_network
from comparison.chart import write_chart
from comparison.figures import Row, describe_row
from comparison.goals import Goal, judge
from comparison.machine import describe_machine
from comparison.measure import measure_row
from comparison.table import print_goals, print_rows
from tvmbridge.host import detect_host

FORMAT = "tvmbridge.peers"
FORMAT_VERSION = 1
SECONDS = 10.0
ROUNDS = 5
QUICK_SECONDS = 1.5
QUICK_ROUNDS = 1

# From here on, in processes that want a CPU on average, others take a share that shows in the figures.
BUSY_LOAD = 0.5


def main() -> int:
    """Measure, print, write; 1 where a network has no figures, as it is wrong or failed, else 0."""
    cores = detect_host().cores
    arguments = _parse_arguments(cores)
    for path in filter(None, (arguments.json, arguments.chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(cores)
    if machine["load_average"][0] > BUSY_LOAD:
        _say(f"this machine is busy (load {machine['load_average'][0]}): its figures will say little")
    rows = measure_all(arguments)
    goals = judge(rows, networks.BATCHES)
    print_rows(rows)
    print_goals(goals)
    if arguments.json is not None:
        report = describe_report(rows, goals, machine)
        arguments.json.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if arguments.chart is not None:
        write_chart(arguments.chart, rows, machine)
    return 1 if any(row.problem is not None for row in rows) else 0


def measure_all(arguments: argparse.Namespace) -> list[Row]:
    """Build each network once at each batch; measure it at each thread count."""
    names = arguments.networks or networks.NETWORKS
    cases = [(name, batch) for name in names for batch in networks.BATCHES[name][: 1 if arguments.quick else None]]
    rows = []
    for number, (network, batch) in enumerate(cases, start=1):
        with tempfile.TemporaryDirectory(prefix="tvmbridge-peers-") as folder:
            _say(f"{number}/{len(cases)} {network}, batch {batch}: build")
            build = build_network(network, batch, Path(folder))
            for threads in arguments.threads:
                _say(f"{number}/{len(cases)} {network}, batch {batch}: measure, threads: {threads}")
                rows.append(
                    measure_row(
                        build,
                        network,
                        batch,
                        threads,
                        seconds=arguments.seconds,
                        rounds=QUICK_ROUNDS if arguments.quick else ROUNDS,
                        tvm_default=arguments.tvm_default,
                    )
                )
    return rows


def describe_report(rows: Sequence[Row], goals: Sequence[Goal], machine: dict[str, Any]) -> dict[str, Any]:
    """The report as its JSON file has it."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "machine": machine,
        "rows": [describe_row(row) for row in rows],
        "goals": [dataclasses.asdict(goal) for goal in goals],
    }


def _parse_arguments(cores: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(networks.NETWORKS)}")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="default: 1, all cores")
    parser.add_argument("--seconds", type=float, help=f"of timing for each row; default: {SECONDS:g}")
    parser.add_argument("--quick", action="store_true", help="the first batch of each network, a second or two a row")
    parser.add_argument("--tvm-default", action="store_true", help="time what TVM makes of the model by itself too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="write a bar chart, as PNG")
    arguments = parser.parse_args()
    for name in arguments.networks:
        if name not in networks.NETWORKS:
            parser.error(f"no network {name!r}; there are {', '.join(networks.NETWORKS)}")
    for threads in arguments.threads:
        if not 1 <= threads <= cores:
            parser.error(f"--threads {threads}: this process may use 1 to {cores}")
    if arguments.chart is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error('--chart needs matplotlib: pip install ".[bench]"')
    if arguments.seconds is None:
        arguments.seconds = QUICK_SECONDS if arguments.quick else SECONDS
    return arguments


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
