"""`tvmbridge bench` on models and bundles, kernel by kernel, and what `build` says of kernels on the fallback."""

from __future__ import annotations

import dataclasses
import json
import re

import onnx
import pytest

import tests.onnx_models as models
from tests.test_profiling import KERNEL, NATIVE, PEAK, plan
from tvmbridge.cli import main
from tvmbridge.cli.bench import _print_profile, _require_timed
from tvmbridge.cli.build import _show_fallback
from tvmbridge.errors import AccuracyError, CompileError, ReferenceUnavailable
from tvmbridge.pipeline import TargetOutcome
from tvmbridge.profiling import NetworkProfile
from tvmbridge.verify.latency import Latency
from tvmbridge.verify.variant import VariantCheck

pytestmark = pytest.mark.compiler

LATENCY = Latency(calls=100, median_us=900.0, p90_us=950.0, p99_us=990.0, reference_us=1000.0, ratio=0.9)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run one command in a folder with a model: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(models.mlp("batch"), "model.onnx")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def test_a_model_is_compared_and_timed_beside_onnx_runtime(run, tmp_path):
    code, out, err = run("bench", "model.onnx", "--dim", "batch=5", "--threads", "1", "--seconds", "0.5", "--json")
    result = json.loads(out)
    assert code == 0 and err == "" and result["variant"] == "native" and result["threads"] == 1
    assert result["max_relative"] < 1e-4 and result["tuned_kernels"] == 0 < result["kernels"]
    assert 0 < result["median_us"] <= result["p99_us"] and result["reference_us"] > 0 and result["ratio"] > 0
    assert result["profile"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_per_kernel_as_json_has_each_kernels_time_share_and_rate(run):
    code, out, _ = run(
        "bench", "model.onnx", "--dim", "batch=5", "--threads", "1", "--seconds", "0.5", "--per-kernel", "--json"
    )
    result = json.loads(out)
    profile = result["profile"]
    assert code == 0 and len(profile["kernels"]) == result["kernels"]
    # Below any machine's, and above what a mistake of a factor of a thousand would leave.
    assert 0.5 < profile["peak"]["gflops"] < 1e5 and 0.1 < profile["peak"]["gb_per_s"] < 1e4
    assert sum(kernel["share"] for kernel in profile["kernels"]) == pytest.approx(1.0)
    assert sum(kernel["total_us"] for kernel in profile["kernels"]) == pytest.approx(profile["total_us"])
    totals = [kernel["total_us"] for kernel in profile["kernels"]]
    assert totals == sorted(totals, reverse=True)
    for kernel in profile["kernels"]:
        assert kernel["fallback"] == (kernel["template"] == "default") and isinstance(kernel["config"], dict)
        assert kernel["alone_us"] > 0 and kernel["bound"] in ("compute", "memory") and kernel["size_bytes"] > 0
    # Layers of 5 rows: two operations a weight.
    assert max(kernel["flops"] for kernel in profile["kernels"]) >= 2 * 5 * 32


@pytest.mark.slow
def test_per_kernel_as_text_has_a_row_a_kernel_and_the_sums(run):
    code, out, err = run("-v", "bench", "model.onnx", "--dim", "batch=5", "--seconds", "0.5", "--per-kernel")
    header = next(line for line in out.splitlines() if line.startswith("kernel"))
    assert code == 0 and header.split()[-1] == "config" and "timing each kernel alone" in err
    assert re.search(r"^peak of \d+ threads?, measured: \d+ GFLOP/s, \d+ GB/s$", out, re.MULTILINE)
    assert re.search(r"^sum of the kernels .*; the network .*, ONNX Runtime .*s$", out, re.MULTILINE)


@pytest.mark.slow
def test_the_log_decides_the_schedules(run):
    tune = ("tune", "model.onnx", "--dim", "batch=5", "--target", "native", "--trials", "4", "--log", "m.tune.jsonl")
    assert run(*tune)[0] == 0
    code, out, _ = run("bench", "model.onnx", "--dim", "batch=5", "--seconds", "0.2", "--log", "m.tune.jsonl", "--json")
    assert code == 0 and json.loads(out)["tuned_kernels"] > 0


def test_a_bundle_without_its_suffix_is_timed_as_a_bundle(run):
    assert run("build", "model.onnx", "--dim", "batch=5", "--target", "native", "--no-tune", "-o", "bundle")[0] == 0
    code, out, _ = run("bench", "bundle", "--seconds", "0.2", "--json")
    assert code == 0 and json.loads(out)["load_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["m.tvmb", "--per-kernel", "--shape", "x=1"], "--shape, --per-kernel: options of an ONNX model"),
        (["m.tvmb", "--log", "a.tune.jsonl"], "--log: options of an ONNX model"),
        (["model.onnx", "--against", "model.onnx"], "--against: options of a bundle"),
        (["model.onnx", "--variant", "native"], "--variant: options of a bundle"),
    ],
)
def test_an_option_of_the_other_kind_of_file_is_wrong_usage(run, arguments, wrong):
    code, out, err = run("bench", *arguments)
    assert code == 2 and out == "" and wrong in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.onnx"], "nothing.onnx"),
        (["nothing.tvmb"], "nothing.tvmb"),
        (["model.onnx"], "batch"),
        (["model.onnx", "--dim", "batch=5", "--log", "nothing.tune.jsonl"], "nothing.tune.jsonl: no such file"),
        (["model.onnx", "--dim", "batch=5", "--target", "nonsense"], "nonsense"),
        (["model.onnx", "--dim", "batch=5", "--target", "arm"], "arm cannot be timed here: this machine is"),
        (["model.onnx", "--dim", "batch=5", "-i", "nothing.npz"], "nothing.npz"),
    ],
)
def test_bad_input_is_said_and_exits_with_1(run, arguments, said):
    code, out, err = run("bench", *arguments)
    assert code == 1 and out == "" and said in err and "hint:" in err and "Traceback" not in err


def outcome(check: VariantCheck | None, **changes: object) -> TargetOutcome:
    return TargetOutcome(NATIVE, 0.0, check=check, **changes)


def test_only_a_variant_that_ran_and_was_right_is_timed():
    assert _require_timed(outcome(VariantCheck("native", latency=LATENCY, threads=2))) == (LATENCY, 2)
    with pytest.raises(CompileError, match="broken"):
        _require_timed(outcome(None, error=CompileError("broken")))
    with pytest.raises(AccuracyError, match=r"differs(.|\n)*not timed") as raised:
        _require_timed(outcome(None, error=AccuracyError("differs", hint="--accept-inaccurate native")))
    assert "--accept" not in str(raised.value)
    with pytest.raises(ReferenceUnavailable, match="does not take the model"):
        _require_timed(outcome(VariantCheck("native", unverified_because="ONNX Runtime does not take the model")))


def test_the_table_marks_the_fallback_and_sums_its_share(capsys):
    slow = dataclasses.replace(KERNEL, name="slow", template="default", calls=1, call_us=600.0)
    view = dataclasses.replace(KERNEL, name="view", template="default", call_us=0.0, alone_us=None, flops=None)
    _print_profile(NetworkProfile(1, PEAK, (slow, KERNEL, view), {"sort": 250.0}), LATENCY, configs=False)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: re.split(r"\s{2,}", line) for line in lines if line}
    assert rows["slow"][:7] == ["slow", "default *", "1", "600 µs", "600 µs", "60.0%", "40 µs"]
    assert rows["k"] == ["k", "contraction", "3", "50 µs", "150 µs", "15.0%", "40 µs", "40", "0.02", "40% compute"]
    assert rows["view"][-4:] == ["–"] * 4
    assert lines[-4:] == [
        "sort, a function of TVM's runtime: 250 µs",
        "* 2 of 3 kernels take the fallback template, 60.0% of the kernels' time",
        "peak of 1 thread, measured: 100 GFLOP/s, 10 GB/s",
        "sum of the kernels 1 ms, each alone with warm caches 410 µs; the network 900 µs, ONNX Runtime 1 ms",
    ]


def test_the_table_shows_configs_where_they_are_asked_for(capsys):
    _print_profile(NetworkProfile(2, PEAK, (KERNEL,)), LATENCY, configs=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("config") and lines[1].endswith("mr=4")
    assert "fallback" not in "\n".join(lines) and "peak of 2 threads" in "\n".join(lines)


def test_build_names_the_worst_kernels_on_the_fallback_with_their_shares():
    plans = [plan("dense", "contraction"), *(plan(f"k{index}", "default") for index in range(7))]
    times_us = {"dense": 720.0, **{f"k{index}": 10.0 * (index + 1) for index in range(7)}}
    said = _show_fallback(outcome(VariantCheck("native", kernel_us=times_us), kernels=tuple(plans)))
    count, _, named = said.partition(": ")
    assert count == "7 of 8 kernels take the fallback template, 28.0% of the time"
    assert named == "k6 7.0%, k5 6.0%, k4 5.0%, k3 4.0%, k2 3.0%, 2 more"


def test_build_says_that_a_share_was_not_measured():
    plans = (plan("dense", "contraction"), plan("view", "default"))
    for check in (None, VariantCheck("native", unverified_because="is for aarch64")):
        said = _show_fallback(outcome(check, kernels=plans))
        assert said == "1 of 2 kernels take the fallback template, share of the time not measured: view"


def test_build_says_nothing_where_every_kernel_has_a_template():
    assert _show_fallback(outcome(None, kernels=(plan("dense", "contraction"),))) is None


def test_build_as_json_has_every_kernels_share(run):
    code, out, _ = run(
        "build", "model.onnx", "--dim", "batch=5", "--target", "native", "--target", "arm", "--no-tune", "--json"
    )
    native, arm = json.loads(out)["targets"]
    assert code == 0 and sum(kernel["share"] for kernel in native["kernels"]) == pytest.approx(1.0)
    assert all(kernel["share"] is None and kernel["total_us"] is None for kernel in arm["kernels"])
    for kernel in native["kernels"] + arm["kernels"]:
        assert kernel["fallback"] == (kernel["template"] == "default")
