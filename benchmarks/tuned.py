"""Untuned, express and tuned tvmbridge beside ONNX Runtime and OpenVINO: `python benchmarks/tuned.py`.

    python benchmarks/tuned.py [NETWORK ...] [--express M] [--minutes M] [--seconds S] [--keep DIR] [--json FILE]

Every network is tuned for itself, with a log of its own: --express minutes first, then on to --minutes in all. At the
batch that docs/benchmarks.md lists first, on all cores, which is what the target declares. It takes about the sum of
the minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import networks
from comparison.build import build_network
from comparison.figures import EXPRESS, OPENVINO, OURS, REFERENCE, TUNED, Row, describe_row, geometric_mean
from comparison.machine import describe_machine
from comparison.measure import measure_bundles
from comparison.table import print_goals
from comparison.tuning import Tuned, retune_seconds, tune_network
from comparison.tuning_goals import judge_tuning
from tvmbridge.cli.output import print_table
from tvmbridge.host import detect_host

FORMAT = "tvmbridge.tuned"
FORMAT_VERSION = 1
OURS_IN_STEPS = (OURS, EXPRESS, TUNED)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One network: its row, the steps of its tuning by program, and how long tuning again took."""

    row: Row
    steps: dict[str, Tuned]
    retune_seconds: float | None


def main() -> int:
    """Tune, measure, print, write; 1 where a network has no figures, else 0."""
    arguments = _parse_arguments()
    cores = detect_host().cores
    machine = describe_machine(cores)
    measured = []
    names = arguments.networks or list(networks.NETWORKS)
    for number, network in enumerate(names, start=1):
        _say(f"{number}/{len(names)} {network}")
        with _folder(arguments.keep, network) as folder:
            measured.append(measure_network(network, folder, cores, arguments))
        print_measured(measured)
    steps = {each.row.network: each.steps for each in measured}
    retuned = {each.row.network: each.retune_seconds for each in measured}
    goals = judge_tuning([each.row for each in measured], steps, retuned, list(networks.NETWORKS))
    print_goals(goals)
    if arguments.json is not None:
        report = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "machine": machine,
            "express_minutes": arguments.express,
            "minutes": arguments.minutes,
            "rows": [
                {
                    **describe_row(each.row),
                    "steps": {program: _describe_step(step) for program, step in each.steps.items()},
                    "retune_seconds": each.retune_seconds,
                }
                for each in measured
            ],
            "goals": [dataclasses.asdict(goal) for goal in goals],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 1 if any(each.row.problem is not None for each in measured) else 0


def measure_network(network: str, folder: Path, threads: int, arguments: argparse.Namespace) -> Measured:
    """Build it untuned, tune it in two steps, and measure the three bundles beside the peers."""
    batch = networks.BATCHES[network][0]
    build = build_network(network, batch, folder)
    row = Row(network, batch, threads, build.seconds, build.memory_bytes, problem=build.problem)
    if build.problem is not None:
        return Measured(row, {}, None)
    log = folder / f"{network}.tune.jsonl"
    steps = {}
    for program, minutes in ((EXPRESS, arguments.express), (TUNED, arguments.minutes - arguments.express)):
        _say(f"  {program}: {minutes:g} min")
        steps[program] = tune_network(build.model, log, folder / f"{network}.{program}.tvmb", "--minutes", str(minutes))
        if (problem := steps[program].problem) is not None:
            return Measured(dataclasses.replace(row, problem=problem), steps, None)
    _say("  measure")
    settings = {"threads": threads, "seconds": arguments.seconds, "rounds": 5, "tvm_default": False}
    bundles = {OURS: build.bundle, **{program: step.bundle for program, step in steps.items()}}
    row = dataclasses.replace(row, **measure_bundles(build.model, bundles, settings))
    return Measured(row, steps, retune_seconds(build.model, log, steps[TUNED].known + steps[TUNED].trials))


def print_measured(measured: list[Measured]) -> None:
    """A line a network, and the means."""
    columns = ["network", "batch", "untuned", "express", "tuned", "tuned × OpenVINO", "express / tuned"]
    columns += ["trials", "a second", "failed", "error", "again s"]
    print(f"\nTimes relative to ONNX Runtime's, on {measured[0].row.threads} threads")
    print_table(columns, [_cells(each) for each in measured])
    for each in measured:
        if each.row.problem is not None:
            print(f"{each.row.label}: {each.row.problem}")
    rows = [each.row for each in measured]
    for program in OURS_IN_STEPS:
        for peer in (REFERENCE, OPENVINO):
            ratios = [ratio.median for row in rows if (ratio := row.ratio(program, peer)) is not None]
            if ratios:
                print(f"{program} / {peer}: geometric mean {geometric_mean(ratios):.3f} of {len(ratios)}")


def _cells(each: Measured) -> list[str]:
    row = each.row
    pairs = [(program, REFERENCE) for program in OURS_IN_STEPS] + [(TUNED, OPENVINO), (EXPRESS, TUNED)]
    ratios = [row.ratio(program, base) for program, base in pairs]
    trials = sum(step.trials for step in each.steps.values())
    seconds = sum(step.seconds for step in each.steps.values())
    return [
        row.network,
        str(row.batch),
        *(f"{ratio.median:.3f}" if ratio is not None else "–" for ratio in ratios),
        str(trials),
        f"{trials / seconds:.1f}" if seconds else "–",
        str(sum(step.failed for step in each.steps.values())),
        f"{row.max_relative:.1e}" if row.max_relative is not None else "–",
        f"{each.retune_seconds:.1f}" if each.retune_seconds is not None else "–",
    ]


def _describe_step(step: Tuned) -> dict[str, object]:
    return {**dataclasses.asdict(step), "bundle": step.bundle.name, "trials_per_second": step.trials_per_second}


@contextlib.contextmanager
def _folder(keep: Path | None, network: str) -> Iterator[Path]:
    """Where a network's files go: below `keep`, or nowhere for long."""
    if keep is not None:
        (keep / network).mkdir(parents=True, exist_ok=True)
        yield keep / network
    else:
        with tempfile.TemporaryDirectory(prefix="tvmbridge-tuned-") as name:
            yield Path(name)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(networks.NETWORKS)}")
    parser.add_argument("--express", type=float, default=3.0, metavar="MINUTES", help="of the first step; default: 3")
    parser.add_argument("--minutes", type=float, default=10.0, help="of both steps; default: 10")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each network; default: 10")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep models, logs and bundles there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    for name in arguments.networks:
        if name not in networks.NETWORKS:
            parser.error(f"no network {name!r}; there are {', '.join(networks.NETWORKS)}")
    if not 0 < arguments.express <= arguments.minutes:
        parser.error("--express is a part of --minutes")
    return arguments


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
