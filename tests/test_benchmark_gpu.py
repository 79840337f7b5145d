"""The comparison on a GPU: its order of work, goals, table and report, and how wheels travel."""

from __future__ import annotations

import ensurepip
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import networks
from comparison.bring import CUDA_RUNTIME, BringError, make_environment, own_requirements
from comparison.figures import COMPILED, EAGER, NOT_INSTALLED, OURS, TUNED
from comparison.gpu_figures import GpuRow, describe_gpu_row
from comparison.gpu_goals import judge_gpu
from comparison.gpu_plan import PRECISIONS, Case, Step, plan
from comparison.gpu_programs import peers_of, worker_of
from comparison.gpu_run import GpuBenchmark, Settings
from comparison.gpu_table import print_gpu_rows
from comparison.gpu_turns import Worker, WorkerError, round_medians, time_programs_in_turns
from comparison.gpu_worker import SETTLE_CALLS, time_block
from comparison.parts import LIST_NAME, PartsError, join_parts, split_file
from tests.cuda_emulation import run_emulated

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
NETWORKS = ("resnet50", "bert4")
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "gpu": "Some GPU",
    "architecture": "sm_90",
    "emulated": True,
    "peer_device": "cpu",
    "state": {"driver": "580.1"},
    "cuda_of_driver": "13.0",
    "nvcc": "13.0.88",
    "versions": {"apache-tvm": "0.27.0"},
    "peer_versions": {"problem": "/none/python does not run"},
}
# A Python with torch, where that is not this one: torch is no part of the development install.
PEER_PYTHON = os.environ.get("TVMBRIDGE_PEER_PYTHON", sys.executable)


def row(network: str = "resnet50", batch: int = 1, precision: str = "float32", **changes: object) -> GpuRow:
    """Right, untuned at 1.5 ms and tuned at 0.9 ms beside a PyTorch of 1 ms."""
    times = {OURS: 1.5, TUNED: 0.9, EAGER: 1.0, COMPILED: 1.0}
    rounds = {program: [time_ms * 1000] * 3 for program, time_ms in times.items()}
    facts = {"build_seconds": 10.0, "errors": {OURS: 1e-6, TUNED: 2e-6, EAGER: 3e-6}, "rounds_us": rounds}
    return GpuRow(Case(network, batch, precision), **{**facts, **changes})


def verdicts(rows: list[GpuRow]) -> dict[str, bool | None]:
    return {goal.name: goal.met for goal in judge_gpu(rows, NETWORKS, ["float32"])}


# What is done first


def test_all_networks_are_built_at_batch_1_in_float32_before_anything_else():
    steps = plan(NETWORKS, (1, 16), PRECISIONS, peers=True, tune=True)
    assert steps[:4] == [
        Step("build", Case("resnet50", 1, "float32")),
        Step("build", Case("bert4", 1, "float32")),
        Step("speed", Case("resnet50", 1, "float32")),
        Step("speed", Case("bert4", 1, "float32")),
    ]
    kinds = [(step.kind, step.case.batch, step.case.precision) for step in steps[::2]]
    quick = [("build", "float32"), ("speed", "float32"), ("build", "float16"), ("speed", "float16")]
    slow = [("peers", "float32"), ("peers", "float16"), ("tune", "float32"), ("tune", "float16")]
    assert kinds == [(kind, batch, p) for order in (quick, slow) for batch in (1, 16) for kind, p in order]


@given(
    st.lists(st.sampled_from(networks.NETWORKS), min_size=1, unique=True),
    st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(PRECISIONS), min_size=1, unique=True),
    st.booleans(),
    st.booleans(),
)
def test_every_case_has_each_step_once_and_is_built_before_it_is_timed(names, batches, precisions, peers, tune):
    steps = plan(names, batches, precisions, peers=peers, tune=tune)
    assert len(set(steps)) == len(steps) == len(names) * len(batches) * len(precisions) * (2 + peers + tune)
    place = {step: index for index, step in enumerate(steps)}
    for step in steps:
        assert place[Step("build", step.case)] <= place[step]


def test_pytorchs_defaults_are_timed_beside_exact_float32_and_not_beside_float16():
    assert peers_of("speed", "float32") == ("eager", "eager_defaults")
    assert peers_of("speed", "float16") == ("eager",)
    everything = peers_of("tune", "float32")
    assert set(peers_of("peers", "float16")) == {name for name in everything if not name.endswith("_defaults")}
    assert {worker_of(program) for program in everything} == {"torch", "onnxruntime"} and worker_of(TUNED) == OURS


# Goals, table, report


def test_right_and_fast_rows_meet_every_goal():
    found = judge_gpu([row(), row("bert4")], NETWORKS, ["float32"])
    assert [goal.met for goal in found] == [True] * 3
    assert [goal.found for goal in found] == ["2.0e-06", "1.50 (resnet50, batch 1)", "0.900 of 2"]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"problem": "wrong: 1.0e-01 relative error", "errors": {OURS: 0.1}}, "largest error"),
        ({"errors": {OURS: 2e-3}}, "largest error"),
        ({"rounds_us": {OURS: [2100.0], EAGER: [1000.0]}}, "highest untuned ratio to eager PyTorch"),
        ({"rounds_us": {TUNED: [1500.0], COMPILED: [1000.0]}}, "geometric mean of the tuned ratios to compile"),
    ],
)
def test_one_row_can_miss_a_goal(change, missed):
    found = verdicts([row(**change), row("bert4")])
    assert [name.partition(",")[0] for name, met in found.items() if met is False] == [missed]


def test_times_that_are_no_gpus_meet_and_miss_no_goal_of_speed():
    slow = row(rounds_us={OURS: [9000.0], EAGER: [1000.0]})
    assert [goal.met for goal in judge_gpu([slow, row("bert4")], NETWORKS, ["float32"])] == [True, False, None]
    unjudged = judge_gpu([slow, row("bert4")], NETWORKS, ["float32"], comparable=False)
    assert [goal.met for goal in unjudged] == [True, None, None] and unjudged[1].found == "9.00 (resnet50, batch 1)"


def test_a_row_is_right_when_it_is_verified_and_tuned_as_far_as_it_was_to_be():
    assert row().right and row().best == TUNED
    assert not row(problem="wrong: y").right and not row(errors={}).right
    assert row(errors={OURS: 2e-3}).verified and not row(errors={OURS: 2e-3}).right
    untuned = row(absent={TUNED: "not tuned: why"}, rounds_us={OURS: [1.0]})
    assert untuned.verified and not untuned.right and untuned.best == OURS


def test_a_part_of_the_networks_meets_no_goal():
    assert set(verdicts([row()]).values()) == {None}
    assert set(verdicts([]).values()) == {None}


def test_the_table_has_a_column_for_each_program_that_was_timed_and_says_why_others_were_not(capsys):
    wrong = row("bert4", problem="wrong: 2.0e-02 relative error", errors={OURS: 0.02}, rounds_us={})
    rows = [row(absent={COMPILED: "failed: RuntimeError: no triton", "tensorrt": NOT_INSTALLED}), wrong]
    print_gpu_rows(rows, [Step("tune", Case("bert4", 16, "float16"))] * 2, MACHINE)
    out = capsys.readouterr().out
    machine, header, first, second = out.splitlines()[:4]
    assert machine == (
        "2026-01-02, Some GPU (sm_90), driver 580.1, CUDA 13.0, nvcc 13.0.88, apache-tvm 0.27.0, torch not installed. "
        "EMULATED: its times are no GPU's. torch computes on the CPU"
    )
    assert "tuned ms" in header and "compile ms" in header and "TensorRT" not in header
    assert first.split()[:7] == ["resnet50", "1", "float32", "1.5", "0.9", "1", "1"]
    assert "0.90" in first and "2.0e-02" in second
    assert "tuned / eager, float32, batch 1: geometric mean 0.900 of 1" in out
    assert "bert4, batch 1, float32: wrong: 2.0e-02 relative error" in out
    assert "resnet50, batch 1, float32: compile: failed: RuntimeError: no triton" in out
    assert "not installed: TensorRT" in out and "tune, batch 16, float16 (2)" in out


def test_a_row_of_the_report_is_json_with_what_follows_from_its_times():
    described = json.loads(json.dumps(describe_gpu_row(row()), allow_nan=False))
    assert (described["network"], described["batch"], described["precision"]) == ("resnet50", 1, "float32")
    assert described["median_us"][TUNED] == 900 and described["ratios"]["tuned_to_compile"]["median"] == 0.9
    assert set(described["ratios"]) == {f"{a}_to_{b}" for a in (OURS, TUNED) for b in (EAGER, COMPILED)}


# How it gets to a machine without a network


@settings(max_examples=40)
@given(st.binary(max_size=300), st.integers(1, 120))
def test_parts_make_the_file_and_none_is_larger_than_asked_for(tmp_path_factory, data, part_bytes):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "some.tar").write_bytes(data)
    parts = split_file(folder / "some.tar", folder / "sent", part_bytes)
    assert max(part.stat().st_size for part in parts) <= part_bytes
    assert len(parts) == max(1, -(-len(data) // part_bytes))
    assert join_parts(folder / "sent", folder / "joined").read_bytes() == data


def sent_parts(folder: Path) -> list[Path]:
    (folder / "some.tar").write_bytes(bytes(range(100)))
    return split_file(folder / "some.tar", folder / "sent", 40)


def test_a_part_that_is_missing_is_named(tmp_path):
    sent_parts(tmp_path)[1].unlink()
    with pytest.raises(PartsError, match=r"lacks some\.tar\.part001 of 3 parts"):
        join_parts(tmp_path / "sent", tmp_path)


def test_a_part_that_was_damaged_is_named(tmp_path):
    sent_parts(tmp_path)[2].write_bytes(b"other")
    with pytest.raises(PartsError, match=r"some\.tar\.part002 is not as it was written"):
        join_parts(tmp_path / "sent", tmp_path)


@pytest.mark.parametrize("text", ["{}", "[", '{"format": "tvmbridge.parts", "name": "../x", "parts": []}'])
def test_what_is_no_list_of_parts_is_refused(tmp_path, text):
    (tmp_path / LIST_NAME).write_text(text)
    with pytest.raises(PartsError, match=r"is no list of parts"):
        join_parts(tmp_path, tmp_path)


def test_the_wheels_are_those_that_tvmbridge_declares():
    declared = [
        "numpy>=1.26",
        "PyYAML>=6.0; sys_platform == 'linux'",
        "xgboost; sys_platform != 'linux'",
        "nvidia-cuda-nvcc==13.0.*; extra == 'cuda'",
        f"{CUDA_RUNTIME}==13.0.*; extra == 'cuda'",
        "pytest; extra == 'dev'",
    ]
    whole = own_requirements(declared, toolkit=True)
    assert whole == ["numpy>=1.26", "PyYAML>=6.0", "nvidia-cuda-nvcc==13.0.*", f"{CUDA_RUNTIME}==13.0.*"]
    assert own_requirements(declared, toolkit=False) == [name for name in whole if "nvcc" not in name]


def test_a_folder_that_was_not_brought_makes_no_environment(tmp_path):
    with pytest.raises(BringError, match=r"holds neither parts\.json nor wheels/"):
        make_environment(tmp_path, tmp_path / "environment")
    (tmp_path / "wheels").mkdir()
    with pytest.raises(BringError, match="lacks pip"):
        make_environment(tmp_path, tmp_path / "environment")


def test_an_environment_is_made_of_parts_without_a_network_sees_the_source_tree_and_is_used_again(tmp_path):
    # Debian keeps the wheels of a Python elsewhere.
    wheels = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
    (pip,) = Path(wheels).glob("pip-*.whl")
    (tmp_path / "requirements.txt").write_text("pip\n")
    with tarfile.open(tmp_path / "wheels.tar", "w") as tar:
        tar.add(pip, pip.name)
        tar.add(tmp_path / "requirements.txt", "requirements.txt")
    split_file(tmp_path / "wheels.tar", tmp_path / "brought", 500_000)
    python = make_environment(tmp_path / "brought", tmp_path / "environment")
    assert not list((tmp_path / "brought").glob("*.tar"))
    asked = "import importlib.util as u; print(u.find_spec('tvmbridge').origin, u.find_spec('pip').origin)"
    done = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True)
    ours, theirs = done.stdout.split()
    assert Path(ours).parents[1] == SCRIPT.parents[1] and Path(theirs).is_relative_to(tmp_path / "environment")
    made = python.stat().st_ctime_ns, (tmp_path / "environment" / "pyvenv.cfg").stat().st_mtime_ns
    assert make_environment(tmp_path / "brought", tmp_path / "environment") == python
    assert made == (python.stat().st_ctime_ns, (tmp_path / "environment" / "pyvenv.cfg").stat().st_mtime_ns)


# Wrong usage


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batches", "0"], "a batch is at least 1"),
        (["--time-limit", "0"], "--time-limit 0: more than nothing"),
        (["--minutes", "-1"], "--minutes -1: more than nothing"),
        (["--precisions", "float8"], "invalid choice"),
        (["--bring", "a", "--wheels", "b"], "--bring is for the machine with a network"),
        (["--peer-python", "/none/python"], "--peer-python /none/python: no such program"),
        (["--networks", "resnet51"], "no network 'resnet51'"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_done(options, said, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())


def test_the_script_needs_nothing_but_python_until_its_wheels_are_installed(tmp_path):
    command = [sys.executable, "-S", SCRIPT, "--wheels", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "holds neither parts.json nor wheels/" in done.stderr
    assert "Traceback" not in done.stderr


# The processes that take turns


def test_a_block_leaves_out_the_calls_with_which_it_begins():
    calls: list[float] = []
    times = time_block(lambda: calls.append(time.perf_counter()), 0.0)
    assert len(times) == 1 and len(calls) > SETTLE_CALLS
    assert round_medians([[3.0, 1.0, 2.0], [5.0]]) == [2.0, 5.0]


def test_a_worker_answers_says_what_went_wrong_and_goes_on():
    with Worker() as worker:
        assert worker.ask("describe", packages=["numpy", "no-such-package"])["versions"]["no-such-package"] is None
        assert worker.ask("block", program="eager", seconds=0) == {"error": "KeyError: 'eager'"}
        assert worker.ask("stop") == {}


def test_a_worker_that_ends_is_an_error_that_says_so():
    with Worker() as worker:
        worker.kill()
        with pytest.raises(WorkerError, match="its process ended with status -9"):
            worker.ask("stop")
    assert not worker.alive


def test_a_program_that_fails_falls_out_and_the_others_go_on():
    class Played:
        def __init__(self, fails_at: int) -> None:
            self.fails_at, self.asked = fails_at, 0

        def ask(self, _what: str, **_request: object) -> dict:
            self.asked += 1
            return {"error": "no memory"} if self.asked == self.fails_at else {"us": [1.0]}

    workers = {"a": Played(99), "b": Played(2)}
    blocks, failed = time_programs_in_turns(workers, seconds=0, rounds=3, until=time.monotonic() + 60)
    assert blocks == {"a": [[1.0]] * 3} and failed == {"b": "failed: no memory"}
    blocks, _ = time_programs_in_turns({"a": Played(99)}, seconds=60, rounds=3, until=time.monotonic())
    assert blocks == {"a": [[1.0]]}


# The steps, done


def test_nothing_is_begun_when_the_time_is_up(tmp_path):
    chosen = Settings(
        folder=tmp_path,
        architecture="sm_80",
        peer_python=sys.executable,
        peer_path="",
        peer_device="cpu",
        seconds=1,
        rounds=1,
        minutes=1,
        engine="templates",
        jobs=2,
        deadline=time.monotonic(),
    )
    kept: list[GpuRow] = []
    steps = plan(["mlp"], (1,), PRECISIONS, peers=True, tune=True)
    with GpuBenchmark(chosen, kept.append, lambda _text: None) as benchmark:
        assert set(benchmark.do(steps)) == set(steps)
    assert kept == [] and not list(tmp_path.glob("*.onnx"))


@pytest.mark.compiler
@pytest.mark.slow
def test_a_quick_run_on_the_emulated_device_is_right_and_writes_its_report(tmp_path):
    report = tmp_path / "new" / "gpu.json"
    choice = ["--networks", "mlp", "--precisions", "float32", "--peer-python", PEER_PYTHON, "--peer-path", ""]
    command = [sys.executable, str(SCRIPT), "--quick", *choice, "--peer-device", "cpu", "--json", str(report)]
    done = run_emulated(command, check=False)
    assert done.returncode == 0, done.stderr
    assert "EMULATED" in done.stdout and "speed: mlp, batch 1, float32" in done.stderr
    found = json.loads(report.read_text())
    assert (found["format"], found["version"], found["left_out"]) == ("tvmbridge.gpu", 1, [])
    assert found["machine"]["gpu"] == "Emulated CUDA device" and found["machine"]["emulated"] is True
    (measured,) = found["rows"]
    assert measured["problem"] is None and 0 < measured["errors"][OURS] <= 1e-4 and measured["median_us"][OURS] > 0
    assert {*measured["rounds_us"], *measured["absent"]} == {OURS, EAGER, "eager_defaults"}
    assert set(measured["absent"].values()) <= {NOT_INSTALLED}
    assert len(measured["gpu_states"]) == 2
