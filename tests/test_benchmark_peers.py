"""The comparison with ONNX Runtime and OpenVINO: what follows from times, what is printed and drawn, a real run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import networks
from comparison.build import Build, run_watched
from comparison.chart import write_chart
from comparison.figures import NOT_INSTALLED, Row, describe_row, geometric_mean
from comparison.goals import judge
from comparison.measure import measure_row
from comparison.table import print_goals, print_rows
from tvmbridge.verify.latency import time_in_turns

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "peers.py"
MACHINE = {"cpu": "Some CPU", "date": "2026-01-02T03:04:05+00:00"}
CASES = {"resnet50": (1, 4), "bert4": (1,)}
TIMES = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9)


def row(network: str = "resnet50", batch: int = 1, threads: int = 1, ours: float = 0.9, **changes: object) -> Row:
    """A row of 3 rounds in which ONNX Runtime takes 1 ms and tvmbridge `ours`."""
    facts = {"build_seconds": 10.0, "build_memory_bytes": 10**9, "max_relative": 1e-6}
    rounds = {"tvmbridge": [ours * 1000] * 3, "onnxruntime": [1000.0] * 3, "openvino": [1100.0] * 3}
    return Row(network, batch, threads, **{**facts, "rounds_us": rounds, **changes})


def all_rows(ours: float = 0.9) -> list[Row]:
    cases = [(network, batch) for network, batches in CASES.items() for batch in batches]
    return [row(n, b, threads, ours / threads**0.9) for n, b in cases for threads in (1, 2)]


def verdicts(rows: list[Row]) -> dict[str, bool | None]:
    return {goal.name.split(",")[0] if "mean" not in goal.name else goal.name: goal.met for goal in judge(rows, CASES)}


@given(TIMES)
def test_the_geometric_mean_of_inverses_is_the_inverse_of_the_mean(values):
    mean = geometric_mean(values)
    assert min(values) * (1 - 1e-9) <= mean <= max(values) * (1 + 1e-9)
    assert math.isclose(mean * geometric_mean([1 / value for value in values]), 1)


def test_no_values_have_no_geometric_mean():
    with pytest.raises(ValueError, match="no mean"):
        geometric_mean([])


@given(TIMES, st.floats(0.1, 10))
def test_a_ratio_is_taken_round_by_round(theirs, factor):
    measured = row(rounds_us={"tvmbridge": [factor * time for time in theirs], "onnxruntime": theirs})
    ratio = measured.ratio("tvmbridge")
    assert np.allclose([ratio.low, ratio.median, ratio.high], factor)
    assert measured.ratio("openvino") is None and measured.median_us("openvino") is None


def test_a_disturbed_round_moves_the_quartile_and_not_the_median():
    ratio = row(rounds_us={"tvmbridge": [8.0, 80, 8], "onnxruntime": [10.0, 10, 10]}).ratio("tvmbridge")
    assert (ratio.median, ratio.low, ratio.high) == (0.8, 0.8, pytest.approx(4.4))


def test_all_goals_are_met_by_fast_and_right_rows():
    assert set(verdicts(all_rows()).values()) == {True}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"ours": 1.3}, "highest ratio to ONNX Runtime"),
        ({"build_seconds": 15.1}, "build of resnet50"),
        ({"build_memory_bytes": 3_100_000_000}, "memory of the largest build"),
        ({"max_relative": 2e-4, "problem": "wrong: y"}, "largest error relative to ONNX Runtime's outputs"),
        ({"problem": "failed", "max_relative": None}, "largest error relative to ONNX Runtime's outputs"),
        ({"ours": 0.5}, "speed-up of resnet50 by the second thread"),
    ],
)
def test_a_goal_is_missed_by_one_row_that_misses_it(change, missed):
    rows = all_rows(0.7)
    rows[0] = row(**change)
    assert [name for name, met in verdicts(rows).items() if met is False] == [missed]


def test_the_mean_misses_its_goal_at_the_threads_where_it_does():
    rows = [row(r.network, r.batch, r.threads, 0.96 if r.threads == 2 else 0.4) for r in all_rows()]
    found = verdicts(rows)
    assert found["geometric mean of the ratios to ONNX Runtime, 1 thread"] is True
    assert found["geometric mean of the ratios to ONNX Runtime, 2 threads"] is False


def test_a_row_without_figures_keeps_the_means_from_being_met():
    rows = all_rows()
    rows[0] = row(problem="wrong: y", rounds_us={})
    found = verdicts(rows)
    assert found["geometric mean of the ratios to ONNX Runtime, 1 thread"] is False
    assert found["highest ratio to ONNX Runtime"] is False


def test_what_was_not_measured_is_not_judged():
    found = verdicts([row("bert4")])
    unjudged = [name for name, met in found.items() if met is None]
    assert unjudged == [
        "geometric mean of the ratios to ONNX Runtime, 1 thread",
        "build of resnet50",
        "speed-up of resnet50 by the second thread",
    ]
    assert set(verdicts([]).values()) == {None}


def test_the_table_says_what_is_missing_and_why(capsys):
    rows = [
        row(rounds_us={"tvmbridge": [800.0] * 2, "onnxruntime": [1000.0] * 2}, absent={"openvino": NOT_INSTALLED}),
        row("bert4", problem="wrong: output y: 2.0e-01 relative error", max_relative=0.2, rounds_us={}),
        row("mlp", 32, absent={"tvm_default": "failed: ValueError: odd"}),
    ]
    print_rows(rows)
    print_goals(judge(rows, CASES))
    out = capsys.readouterr().out
    resnet50, bert4, mlp = out.splitlines()[1:4]
    assert resnet50.split()[:5] == ["resnet50", "1", "1", "0.8", "1"] and resnet50.count("not installed") == 2
    assert "0.80–0.80" in resnet50 and "wrong" in bert4 and "2.0e-01" in bert4 and "failed" in mlp
    assert "bert4, batch 1: wrong: output y: 2.0e-01 relative error" in out
    assert "mlp, batch 32: TVM's default: failed: ValueError: odd" in out
    assert 'OpenVINO is not installed: pip install ".[bench]"' in out
    assert "TVM's default ms" in out and "over 2 of 3 rows" in out and "missed" in out


def test_the_table_has_no_column_for_what_was_not_asked_for(capsys):
    print_rows([row(), row("bert4", ours=1283.4)])
    out = capsys.readouterr().out
    assert "TVM's default" not in out and "not installed" not in out and "0.82" in out  # 0.9 / 1.1: OpenVINO
    assert out.splitlines()[2].split()[:4] == ["bert4", "1", "1", "1283"]


@pytest.mark.parametrize(
    "rows",
    [
        all_rows(),
        [row(ours=31.4), row("bert4", problem="wrong: output y", rounds_us={})],
        [row("mlp", 32, problem="not built: no linker", rounds_us={})],
    ],
    ids=["two thread counts", "far off and wrong", "no figures at all"],
)
def test_the_chart_is_a_picture_that_depends_on_the_figures(tmp_path, rows):
    write_chart(tmp_path / "a.png", rows, MACHINE)
    write_chart(tmp_path / "b.png", [*rows, row("shufflenet", ours=1.01)], MACHINE)
    one, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert one.startswith(b"\x89PNG") and len(one) > 5000
    assert one != other


def test_a_described_row_is_json_and_holds_what_was_measured():
    described = json.loads(json.dumps(describe_row(row()), allow_nan=False))
    names = set(Row.__dataclass_fields__)
    assert Row(**{name: described[name] for name in names}) == row()
    assert described["median_us"] == {"tvmbridge": 900, "onnxruntime": 1000, "openvino": 1100}
    assert described["ratio_to_onnxruntime"]["openvino"]["median"] == pytest.approx(1.1)


def test_subjects_take_turns_and_each_round_has_all():
    order: list[str] = []
    subjects = [lambda name=name: order.append(name) for name in "abc"]
    blocks = time_in_turns(subjects, seconds=0, rounds=2)
    assert [len(kept) for kept in blocks] == [2, 2, 2] and all(times for kept in blocks for times in kept)
    turns = [name for name, before in zip(order[3:], order[2:], strict=False) if name != before]
    assert order[:3] == ["a", "b", "c"] and turns == ["a", "b", "c", "a", "b", "c"]


def test_a_watched_command_counts_the_memory_of_what_it_starts(tmp_path):
    hold = "import time; x = bytearray({}); time.sleep({})"
    inner = [sys.executable, "-c", hold.format(150_000_000, 1)]
    outer = f"import subprocess; x = bytearray(100_000_000); subprocess.run({inner!r}); print('done')"
    done = run_watched([sys.executable, "-c", outer], tmp_path)
    assert (done.returncode, done.output) == (0, "done\n") and done.seconds >= 1
    assert 250e6 < done.memory_bytes < 340e6


def test_a_network_that_was_not_built_is_a_row_with_its_problem(tmp_path):
    build = Build(tmp_path / "m.onnx", tmp_path / "m.tvmb", problem="not built: no linker")
    measured = measure_row(build, "mlp", 32, 1, seconds=1, rounds=1, tvm_default=False)
    assert measured == Row("mlp", 32, 1, problem="not built: no linker")


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("threads", "problem"), [(1, "failed: .*none.tvmb"), (0, "failed with exit code 1: ValueError: threads=0")]
)
def test_a_process_that_fails_is_a_row_with_its_problem(tmp_path, threads, problem):
    build = Build(tmp_path / "m.onnx", tmp_path / "none.tvmb", seconds=2.0)
    measured = measure_row(build, "mlp", 32, threads, seconds=1, rounds=1, tvm_default=False)
    assert re.match(problem, measured.problem)
    assert measured.rounds_us == {} and measured.build_seconds == 2.0


@pytest.mark.parametrize(("option", "said"), [("--threads=0", "may use 1 to"), ("resnet51", "no network 'resnet51'")])
def test_wrong_usage_is_refused_before_anything_is_measured(option, said):
    done = subprocess.run([sys.executable, SCRIPT, option], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and "build" not in done.stderr


@pytest.mark.compiler
@pytest.mark.slow
def test_a_quick_run_on_the_mlp_measures_every_program_and_writes_its_report(tmp_path):
    report_path, chart = tmp_path / "new" / "peers.json", tmp_path / "new" / "peers.png"
    command = [sys.executable, SCRIPT, "mlp", "--quick", "--tvm-default", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", report_path, "--chart", chart], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "mlp, batch 32: build" in done.stderr and chart.read_bytes().startswith(b"\x89PNG")
    report = json.loads(report_path.read_text())
    assert (report["format"], report["version"]) == ("tvmbridge.peers", 1)
    assert report["machine"]["versions"]["onnxruntime"] and report["machine"]["cores"] == len(os.sched_getaffinity(0))
    (measured,) = report["rows"]
    assert measured["problem"] is None and 0 < measured["max_relative"] <= 1e-4
    assert {*measured["rounds_us"], *measured["absent"]} == {"tvmbridge", "onnxruntime", "openvino", "tvm_default"}
    assert measured["absent"] in ({}, {"openvino": NOT_INSTALLED})
    assert len({len(rounds) for rounds in measured["rounds_us"].values()}) == 1
    assert measured["median_us"]["tvmbridge"] > 0 and measured["ratio_to_onnxruntime"]["tvm_default"]["median"] > 0
    assert measured["build_seconds"] > 0 and measured["build_memory_bytes"] > 1e8


@pytest.mark.compiler
@pytest.mark.slow
def test_a_bundle_of_other_weights_is_wrong_and_gets_no_figures(tmp_path):
    import tvmbridge

    other = networks.make_network("mlp")
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "dense2.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), weight.name))
    build = Build(tmp_path / "m.onnx", tmp_path / "m.tvmb", 1.0, 1)
    onnx.save(networks.make_network("mlp"), build.model)
    tvmbridge.build(tvmbridge.import_onnx(other), ["native"], build.bundle, tune=False)
    measured = measure_row(build, "mlp", 32, 1, seconds=1, rounds=1, tvm_default=False)
    assert measured.problem.startswith("wrong: output logits: ") and measured.max_relative > 1e-4
    assert measured.rounds_us == {} and measured.absent == {}
