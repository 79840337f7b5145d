"""Measuring on this machine's GPU: one child for many candidates, lost and replaced; a network tuned, emulated."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cuda_emulation import run_emulated

from tvmbridge.gpus import Gpu
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.log import read_log
from tvmbridge.tuning.measure import gpu_server, opening
from tvmbridge.tuning.measure.gpu_server import _Runner

TUNE = """
import sys
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper
import tvmbridge
weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(40, 24)).astype("float32"), "w")
nodes = [h.make_node("MatMul", ["x", "w"], ["p"]), h.make_node("Relu", ["p"], ["y"])]
inputs, outputs = ([h.make_tensor_value_info(n, T.FLOAT, s)] for n, s in (("x", [6, 40]), ("y", [6, 24])))
graph = h.make_graph(nodes, "graph", inputs, outputs, [weight])
model = tvmbridge.import_onnx(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9))
Path(sys.argv[1], "t.yaml").write_text(
    "{version: 1, targets: {gpu: {kind: cuda, architectures: [sm_75, sm_80, sm_90], measure: local}}}")
(target,) = tvmbridge.load_targets(Path(sys.argv[1], "t.yaml"))
assert target.hardware.startswith("Emulated CUDA device, ") and target.emulated
end = tvmbridge.tune(model, target, budget=tvmbridge.Budget(trials=4), log=Path(sys.argv[1], "x.tune.jsonl"))
print(end.trials, end.failed, end.check is not None, end.problem, len(end.gpus), end.emulated)
"""


def answer(line: bytes) -> dict[str, object]:
    """What a child does: as the request's template says."""
    request = json.loads(line)
    if request["template"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request["template"] == "hang":
        time.sleep(60)
    return {"times_us": [float(os.getpid())], "error": None, "lost": request["template"] == "lost"}


def serve(_setting: object, up: int, down: int) -> None:
    with os.fdopen(down, "rb") as requests:
        for line in requests:
            os.write(up, json.dumps(answer(line)).encode() + b"\n")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, object]]]:
    """Has a candidate answered for that behaves as it is told."""
    monkeypatch.setattr(gpu_server, "_serve", serve)
    kernel = SimpleNamespace(function=SimpleNamespace(params=()))
    runner = _Runner(SimpleNamespace(kernels={"k": kernel}, data=None))  # type: ignore[arg-type]
    yield lambda template, limit_s=20.0: runner.answer({"kernel": "k", "template": template, "limit_s": limit_s})
    runner.end()


def test_one_process_measures_many_candidates_until_one_takes_it_away(ask):
    first, second = ask("good")["times_us"], ask("good")["times_us"]
    assert first == second != [float(os.getpid())]
    assert ask("crash") == {"times_us": [], "error": "crashed with SIGSEGV while running"}
    third = ask("lost")["times_us"]
    assert third != first
    assert ask("good")["times_us"] not in (first, third)


def test_a_candidate_that_hangs_is_ended_and_the_next_one_measured(ask):
    assert ask("hang", 0.3) == {"times_us": [], "error": "running took over 0.3 s"}
    assert ask("good")["error"] is None


def test_candidates_are_compiled_for_the_gpu_alone(monkeypatch: pytest.MonkeyPatch):
    target = parse_preset("cuda:sm_75,sm_80,sm_86,sm_90")
    for here, wanted in (("sm_90", "sm_90"), ("sm_89", "sm_86"), ("sm_80", "sm_80")):
        gpu = Gpu("a GPU", here)
        monkeypatch.setattr(opening, "detect_host", lambda gpus, gpu=gpu: SimpleNamespace(gpus=(gpu,)))
        assert opening._architectures_here(target) == (wanted,)
    assert opening._architectures_here(parse_preset("x86")) == ()


@pytest.mark.compiler
@pytest.mark.slow
def test_a_network_is_tuned_and_checked_on_a_gpu(tmp_path: Path):
    done = run_emulated([sys.executable, "-c", TUNE, str(tmp_path)])
    assert done.stdout.splitlines()[-1] == "4 0 True None 1 True"
    records = list(read_log(tmp_path / "x.tune.jsonl"))
    assert records and all(record.emulated and record.error is None for record in records)
    assert any(record.final for record in records) and len({record.config_key for record in records}) == 4
    hardware = 'hardware="Emulated CUDA device, 8 SMs, 1000 MHz, memory 1000 MHz"'
    assert all(f"architectures=sm_75,sm_80,sm_90 {hardware}" in r.target for r in records)
