"""The benchmark of tuning: what its goals say of its rows, and a short real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from comparison.figures import EXPRESS, OPENVINO, OURS, REFERENCE, TUNED, Row
from comparison.tuning import Tuned
from comparison.tuning_goals import judge_tuning

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tuned.py"
NETWORKS = ("resnet50", "bert4")


def row(network: str, tuned: float = 0.7, express: float = 0.72, openvino: float = 1.0) -> Row:
    """Relative to an ONNX Runtime that takes 1 ms."""
    times = {OURS: 0.9, EXPRESS: express, TUNED: tuned, REFERENCE: 1.0, OPENVINO: openvino}
    return Row(network, 1, 2, rounds_us={program: [time * 1000] * 3 for program, time in times.items()})


def step(trials: int = 600, seconds: float = 100.0) -> Tuned:
    return Tuned(Path("x.tvmb"), trials=trials, seconds=seconds)


def verdicts(
    rows: list[Row], steps: Tuned | None = None, again: float | None = 5.0
) -> dict[str, tuple[str | None, bool | None]]:
    known = {each.network: {TUNED: steps or step()} for each in rows}
    goals = judge_tuning(rows, known, {each.network: again for each in rows}, NETWORKS)
    return {goal.name: (goal.found, goal.met) for goal in goals}


def test_fast_rows_meet_every_goal():
    found = verdicts([row(network) for network in NETWORKS])
    assert len(found) == 6 and {met for _, met in found.values()} == {True}
    assert found["trials a second on resnet50"][0] == "6.000"


@pytest.mark.parametrize(
    ("rows", "steps", "again", "missed"),
    [
        ([row("resnet50", 0.95), row("bert4", 0.95)], None, 5.0, "geometric mean of the tuned ratios to onnxruntime"),
        ([row("resnet50", openvino=0.5), row("bert4")], None, 5.0, "geometric mean of the tuned ratios to openvino"),
        ([row("resnet50", 0.5, 0.5), row("bert4", 1.01)], None, 5.0, "highest tuned ratio to onnxruntime"),
        ([row("resnet50"), row("bert4", express=0.8)], None, 5.0, "express over tuned, the worst"),
        ([row("resnet50"), row("bert4")], step(400), 5.0, "trials a second on resnet50"),
        ([row("resnet50"), row("bert4")], None, 11.0, "tuning again with the log, seconds"),
    ],
)
def test_each_goal_can_be_missed(rows, steps, again, missed):
    assert missed in [name for name, (_, met) in verdicts(rows, steps, again).items() if met is False]


def test_some_networks_can_miss_a_goal_and_not_meet_it():
    found = verdicts([row("resnet50")])
    assert {met for name, (_, met) in found.items() if "trials" not in name} == {None}
    assert verdicts([row("resnet50", 1.2)])["highest tuned ratio to onnxruntime"][1] is False
    assert {met for _, met in verdicts([]).values()} == {None}


@pytest.mark.slow
def test_a_short_run_tunes_the_mlp_in_steps_and_writes_its_report(tmp_path):
    report, kept = tmp_path / "out" / "tuned.json", tmp_path / "kept"
    options = ["--express", "0.15", "--minutes", "0.3", "--seconds", "1", "--json", str(report), "--keep", str(kept)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "mlp", *options], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mlp" in done.stdout and "geometric mean" in done.stdout
    (measured,) = json.loads(report.read_text())["rows"]
    assert measured["problem"] is None and measured["max_relative"] < 1e-4
    assert {OURS, EXPRESS, TUNED, REFERENCE} <= set(measured["rounds_us"])
    express, tuned = measured["steps"][EXPRESS], measured["steps"][TUNED]
    assert express["trials"] > 0 and tuned["known"] == express["trials"]
    assert measured["retune_seconds"] > 0
    assert (kept / "mlp" / "mlp.tune.jsonl").exists()
