"""The command line: every command does its job, says it as text and as JSON, and exits with the code it promises."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import tests.onnx_models as models
from tvmbridge import cli
from tvmbridge.cli import main
from tvmbridge.tuning.log import read_log

pytestmark = pytest.mark.compiler


@pytest.fixture
def run(capsys):
    """Run one command in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a model of a free batch dimension and its bundle for this machine and for ARM."""
    folder = tmp_path_factory.mktemp("built")
    onnx.save(models.mlp("batch"), folder / "model.onnx")
    command = ["build", "model.onnx", "--dim", "batch=5", "--target", "native", "--target", "arm", "--no-tune"]
    subprocess.run([sys.executable, "-m", "tvmbridge", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def feeds(built, tmp_path) -> Path:
    shape = [axis.dim_value or 5 for axis in models.mlp("batch").graph.input[0].type.tensor_type.shape.dim]
    name = models.mlp("batch").graph.input[0].name
    path = tmp_path / "in.npz"
    np.savez(path, **{name: np.random.default_rng(0).normal(size=shape).astype(np.float32)})
    return path


def test_build_names_the_bundle_after_the_model_and_prints_a_row_per_target(built, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        "build", built / "model.onnx", "--dim", "batch=5", "--target", "native", "--target", "arm", "--no-tune"
    )
    assert code == 0 and (tmp_path / "model.tvmb").exists()
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows == ["target", "native", "arm", "wrote"]


def test_build_as_json_says_what_became_of_each_target_and_kernel(built, tmp_path, run):
    output = tmp_path / "m.tvmb"
    code, out, err = run(
        "build", built / "model.onnx", "--dim", "batch=5", "--target", "native", "--trials", "3", "-o", output, "--json"
    )
    report = json.loads(out)
    assert code == 0 and err == "" and report["output"] == str(output)
    (target,) = report["targets"]
    assert target["built"] and target["error"] is None and target["tuning"]["trials"] == 3
    assert target["accuracy"]["max_relative"] < 1e-4 and target["latency_us"] > 0 and target["reference_us"] > 0
    assert all(kernel["template"] and kernel["calls"] >= 1 for kernel in target["kernels"])
    assert sum(not trial.final for trial in read_log(tmp_path / "m.tune.jsonl")) == 3


def test_build_takes_its_targets_from_the_file_of_the_folder_it_runs_in(built, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets.yaml").write_text("version: 1\ntargets:\n  board: {kind: arm, cpu: cortex-a72}\n")
    code, out, _ = run("build", built / "model.onnx", "--dim", "batch=5", "--json")
    assert code == 0
    assert [target["target"]["name"] for target in json.loads(out)["targets"]] == ["board"]
    assert json.loads(out)["targets"][0]["untuned_because"] is None


def test_build_exits_with_1_and_writes_the_rest_where_one_target_fails(built, tmp_path, run, monkeypatch):
    found = __import__("shutil").which
    monkeypatch.setattr("shutil.which", lambda name, **_: None if "nvcc" in name else found(name))
    output = tmp_path / "m.tvmb"
    code, out, err = run(
        "build",
        built / "model.onnx",
        "--dim",
        "batch=5",
        "--target",
        "arm",
        "--target",
        "cuda:sm_90",
        "--no-tune",
        "-o",
        output,
    )
    assert code == 1 and output.exists()
    assert "cuda-sm_90: no nvcc" in err and "hint: pip install 'tvmbridge[cuda]'" in err and "failed" in out


def test_tune_appends_to_the_log_and_resumes_without_measuring_again(built, tmp_path, run):
    log = tmp_path / "m.tune.jsonl"
    tune = ("tune", built / "model.onnx", "--dim", "batch=5", "--target", "native", "--log", log, "--json")
    code, out, _ = run(*tune, "--trials", "4")
    assert code == 0 and json.loads(out)["targets"][0]["trials"] == 4
    code, out, _ = run(*tune, "--trials", "6")
    (target,) = json.loads(out)["targets"]
    assert code == 0 and (target["known"], target["trials"]) == (4, 2)
    keys = [(r.kernel, r.template, r.config_key) for r in read_log(log) if not r.final]
    assert len(keys) == len(set(keys)) == 6


def test_tune_of_a_target_that_is_measured_nowhere_is_an_error(built, tmp_path, run):
    code, _, err = run(
        "tune",
        built / "model.onnx",
        "--dim",
        "batch=5",
        "--target",
        "arm",
        "--trials",
        "4",
        "--log",
        tmp_path / "a.tune.jsonl",
    )
    assert code == 1 and "arm" in err and "measured nowhere" in err


def test_run_writes_what_onnx_runtime_would_give(built, feeds, tmp_path, run):
    import onnxruntime

    code, out, _ = run("run", built / "model.tvmb", "-i", feeds, "-o", tmp_path / "out.npz")
    reference = onnxruntime.InferenceSession(str(built / "model.onnx"), providers=["CPUExecutionProvider"])
    with np.load(feeds) as arrays, np.load(tmp_path / "out.npz") as outputs:
        expected = reference.run(None, dict(arrays))
        names = [output.name for output in reference.get_outputs()]
        assert code == 0 and sorted(outputs.files) == sorted(names)
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)
            assert name in out


def test_run_as_json_describes_the_outputs(built, feeds, run):
    code, out, _ = run("run", built / "model.tvmb", "-i", feeds, "--json")
    result = json.loads(out)
    assert code == 0 and result["variant"] == "native" and result["first_call_us"] > 0
    assert result["outputs"][0]["dtype"] == "float32"


def test_a_device_that_the_bundle_does_not_run_on_is_an_error_and_one_that_is_none_a_wrong_use(built, feeds, run):
    code, out, _ = run("run", built / "model.tvmb", "-i", feeds, "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["variant"] == "native"
    code, _, err = run("run", built / "model.tvmb", "-i", feeds, "--device", "cuda:1")
    assert code == 1 and "the device asked for is cuda:1" in err
    code, out, _ = run("check", built / "model.tvmb", "--device", "cuda", "--json")
    assert code == 1 and json.loads(out)["runs"] is False
    code, _, err = run("bench", built / "model.tvmb", "-i", feeds, "--device", "cuda")
    assert code == 1 and "the device asked for is cuda" in err
    code, _, err = run("bench", built / "model.tvmb", "--device", "cuda", "--rpc", "127.0.0.1:9190/board")
    assert code == 2 and "--device is one of this machine" in err
    code, _, err = run("check", built / "model.tvmb", "--device", "gpu")
    assert code == 2 and '"cpu", "cuda" or "cuda:N"' in err


@pytest.mark.parametrize("against", [False, True])
def test_bench_times_the_bundle_and_the_reference_beside_it(built, run, against):
    more = ("--against", built / "model.onnx") if against else ()
    code, out, _ = run("bench", built / "model.tvmb", "--threads", "1", "--seconds", "0.5", "--json", *more)
    result = json.loads(out)
    assert code == 0 and result["threads"] == 1 and 0 < result["median_us"] <= result["p99_us"]
    assert (result["ratio"] is not None) == against


def test_verify_passes_a_right_bundle_and_names_what_did_not_run(built, run):
    code, out, _ = run("verify", built / "model.tvmb", built / "model.onnx", "--json")
    result = json.loads(out)
    by_name = {check["variant"]: check for check in result["variants"]}
    assert code == 0 and result["passed"]
    assert by_name["native"]["accuracy"]["max_relative"] < 1e-4
    assert "aarch64" in by_name["arm"]["unverified_because"]


def test_verify_fails_a_bundle_of_another_model(built, tmp_path, run):
    other = models.mlp("batch")
    weight = other.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(weight) * 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    code, out, _ = run("verify", built / "model.tvmb", tmp_path / "other.onnx")
    assert code == 1 and "NO:" in out


def test_inspect_shows_the_manifest(built, run):
    code, out, _ = run("inspect", built / "model.tvmb")
    assert code == 0 and "native" in out and "arm" in out and "float32[5," in out
    code, out, _ = run("inspect", built / "model.tvmb", "--json")
    assert code == 0 and json.loads(out)["format"] == "tvmbridge-bundle"


def test_check_says_what_runs_here(built, run):
    code, out, _ = run("check", built / "model.tvmb", "--json")
    levels = {verdict["variant"]: verdict["level"] for verdict in json.loads(out)["variants"]}
    assert code == 0 and levels == {"native": "optimal", "arm": "unsupported"}


def test_check_exits_with_1_where_nothing_runs_here(built, tmp_path, run):
    run("build", built / "model.onnx", "--dim", "batch=5", "--target", "arm", "--no-tune", "-o", tmp_path / "a.tvmb")
    code, out, _ = run("check", tmp_path / "a.tvmb")
    assert code == 1 and "unsupported" in out


def test_targets_and_doctor_describe_this_machine(run):
    code, out, _ = run("targets", "--target", "native", "--target", "cuda:sm_80,sm_90", "--json")
    assert code == 0 and [target["kind"] for target in json.loads(out)] == ["x86", "cuda"]
    code, out, _ = run("doctor", "--json")
    described = json.loads(out)
    assert described["packages"]["apache-tvm"] and described["host"]["cores"] >= 1
    assert {"cc", "nvcc"} <= {tool["name"] for tool in described["tools"]}


def test_log_show_and_merge(built, tmp_path, run):
    for seed in ("1", "2"):
        log = tmp_path / f"{seed}.tune.jsonl"
        run(
            "tune",
            built / "model.onnx",
            "--dim",
            "batch=5",
            "--target",
            "native",
            "--trials",
            "2",
            "--seed",
            seed,
            "--log",
            log,
        )
    merged = tmp_path / "all.tune.jsonl"
    code, out, _ = run("log", "merge", tmp_path / "1.tune.jsonl", tmp_path / "2.tune.jsonl", "-o", merged, "--json")
    assert code == 0 and json.loads(out)["trials"] == sum(not record.final for record in read_log(merged)) == 4
    code, out, _ = run("log", "show", merged, "--json")
    assert code == 0 and sum(kernel["trials"] for kernel in json.loads(out)["kernels"]) == 4
    code, out, _ = run("log", "show", merged)
    assert code == 0 and "4 trials" in out and out.count("kind=x86") == 1


COMMANDS = [
    path
    for name, command in cli.tvmbridge.commands.items()
    for path in ([[name, sub] for sub in command.commands] if hasattr(command, "commands") else [[name]])
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_takes_json(command, run):
    code, out, _ = run(*command, "--help")
    assert code == 0 and "--json" in out and f"tvmbridge {' '.join(command)}" in out.partition("\n\n")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["build"],
        ["build", "m.onnx", "--no-tune", "--trials", "3"],
        ["build", "m.onnx", "--shape", "x"],
        ["build", "m.onnx", "--shape", "x=1xtwo"],
        ["build", "m.onnx", "--target", "native", "--target", "native"],
        ["build", "m.onnx", "--minutes", "-1"],
        ["bench", "m.tvmb", "--threads", "0"],
        ["tune", "m.onnx", "--target", "native"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Error" in err and "Traceback" not in err


@pytest.mark.slow
def test_ctrl_c_while_tuning_keeps_the_log_and_says_how_to_go_on(built, tmp_path):
    log = tmp_path / "m.tune.jsonl"
    command = [
        "tune",
        str(built / "model.onnx"),
        "--dim",
        "batch=5",
        "--target",
        "native",
        "--minutes",
        "5",
        "--log",
        str(log),
    ]
    process = subprocess.Popen([sys.executable, "-m", "tvmbridge", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(read_log(log)) > 3):
        time.sleep(0.2)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again to go on" in err and "Traceback" not in err
    assert len(read_log(log)) > 3 and read_log(log).torn is None
