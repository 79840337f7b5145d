"""Tuning, verifying and timing on two emulated ARM boards that a tracker lends, one of which dies in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from arm_board import ROOT, board_command
from rpc_farm import Farm, free_port, running_farm, wait_for

import tvmbridge
from tvmbridge.bundle import open_bundle
from tvmbridge.device.tracker import count_devices
from tvmbridge.frontend import ImportedModel
from tvmbridge.targets import Target, parse_targets
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.log import read_log
from tvmbridge.tuning.progress import TuneProgress
from tvmbridge.tuning.record import render_config
from tvmbridge.verify import random_inputs
from tvmbridge.verify.elsewhere import time_elsewhere

pytestmark = [pytest.mark.arm, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("arm_board")]

DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
KEY, TRIALS = "qemu-a72", 100


@pytest.fixture(scope="module")
def farm(arm_board: None) -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture(scope="module")
def boards(farm: Farm) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that are registered; each leads a process group."""
    serve = ["python3", "-m", "tvmbridge.device.server", "--tracker", farm.address, "--key", KEY, "--threads", 1]
    started = []
    for _ in range(2):
        command = board_command(
            *serve, "--port", free_port(), tvm=True, share=[ROOT], PYTHONPATH=ROOT, PYTHONDONTWRITEBYTECODE=1
        )
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True))
    try:
        wait_for(lambda: count_devices(farm.place(KEY)) == 2, timeout_s=600)
        yield started
    finally:
        for board in started:
            kill(board)
            board.wait()


def kill(board: subprocess.Popen[bytes]) -> None:
    """With all that it has started: as if its plug had been pulled."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(board.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def target(farm: Farm) -> Target:
    measure = f"{{rpc: {{tracker: '{farm.address}', key: {KEY}, emulated: true}}}}"
    text = f"version: 1\ntargets: {{board: {{kind: arm, cpu: cortex-a72, cores: 1, measure: {measure}}}}}"
    (target,) = parse_targets(text, "targets.yaml")
    return target


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    return tvmbridge.import_onnx(DIGITS, dims={"batch": 1})


@pytest.fixture(scope="module")
def log(
    farm: Farm, boards: list[subprocess.Popen[bytes]], target: Target, model: ImportedModel, tmp_path_factory
) -> Path:
    """Of a tuning run in which a board died while it measured."""
    path = tmp_path_factory.mktemp("tuned") / "digits.tune.jsonl"
    died = threading.Event()

    def on_progress(progress: TuneProgress) -> None:
        if progress.trials >= TRIALS // 2 and not died.is_set():
            died.set()
            threading.Timer(1.0, kill, [boards[0]]).start()  # in the middle of a batch

    ended = tvmbridge.tune(model, target, budget=Budget(trials=TRIALS), log=path, on_progress=on_progress)
    assert died.is_set()
    assert (ended.trials, ended.ended, ended.emulated) == (TRIALS, f"{TRIALS} trials spent", True)
    wait_for(lambda: count_devices(farm.place(KEY)) == 1)
    return path


def test_nothing_is_lost_with_a_board_that_dies_and_every_record_is_marked(log: Path, target: Target) -> None:
    records = list(read_log(log))
    configs = {(r.kernel, r.template, r.template_version, render_config(r.config)) for r in records}
    assert len(records) == len(configs) == TRIALS
    assert [r.error for r in records if r.error is not None and ("lost" in r.error or "took over" in r.error)] == []
    assert {(r.emulated, r.target) for r in records} == {(True, target.key)} and target.key.endswith(" emulated")


def test_what_was_tuned_is_verified_on_the_board_that_is_left_and_the_bundle_is_marked(
    log: Path, target: Target, model: ImportedModel, tmp_path: Path
) -> None:
    bundle = tmp_path / "digits.tvmb"
    (outcome,) = tvmbridge.build(model, [target], bundle, tune=False, log=log, seconds=0.5).outcomes
    assert outcome.error is None and outcome.variant is not None and outcome.check is not None
    assert outcome.check.accuracy is not None and outcome.check.accuracy.max_relative < 1e-4
    assert outcome.variant.tuned_kernels > 0
    with open_bundle(bundle) as opened:
        (variant,) = opened.manifest.variants
        assert variant.emulated and variant.latency_us is not None
        feeds = random_inputs(None, opened.manifest.signature)
    name, threads, latency = time_elsewhere(target.measure, bundle, feeds, seconds=0.5)  # type: ignore[arg-type]
    assert (name, threads, latency.emulated) == ("board", 1, True) and latency.calls > 0


def test_a_build_for_real_boards_of_the_same_kind_takes_none_of_the_records(
    log: Path, target: Target, model: ImportedModel, tmp_path: Path
) -> None:
    real = msgspec.structs.replace(target, emulated=False, measure="none")
    (outcome,) = tvmbridge.build(model, [real], tmp_path / "digits.tvmb", tune=False, log=log).outcomes
    assert outcome.variant is not None and outcome.variant.tuned_kernels == 0
    assert not outcome.variant.emulated
