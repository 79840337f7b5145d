"""A tuning run that is killed again and again, at any moment: it goes on, and nothing is lost or measured twice."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import onnx
import psutil
import pytest
from onnx import helper

import tests.onnx_models as models
from tvmbridge.tuning.log import TrialRecord, read_log

pytestmark = [pytest.mark.compiler, pytest.mark.slow]

KILLS = 20
TRIALS = 120
BATCH = 16  # at most so many trials are written at once
START_S = 6.0  # about so long a run takes to its first batch
GIVE_UP_S = 120.0
HEADER_BYTES = 200  # no trial is within them


def chain() -> onnx.ModelProto:
    """Products of ever other sizes: five kernels with hundreds of configs, so that the budget is what ends a run."""
    sizes = [37, 29, 43, 31, 23, 19]
    weights = {f"w{i}": models.random_weight(pair, i) for i, pair in enumerate(itertools.pairwise(sizes))}
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"product{i}") for i in range(5)]
    return models.model(nodes, [models.value("h0", (11, 37))], [models.value("h5", (11, 19))], weights)


class Run:
    """One `tvmbridge tune` of the model in `folder`, and all the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "m.tune.jsonl"
        self._mark = f"{uuid.uuid4()}"  # every process below inherits it, whoever its parent is by then
        self._printed = (folder / "printed.txt").open("w+")
        where = [str(folder / "m.onnx"), "--target", "native", "--log", str(self.log)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tvmbridge", "tune", *where, "--trials", str(TRIALS), "--json"],
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TVMBRIDGE_TEST_RUN": self._mark},
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def printed(self) -> str:
        self._printed.seek(0)
        return self._printed.read()

    def wait_for_all(self) -> None:
        """Until no process of the run is left."""
        self.wait(GIVE_UP_S)
        deadline = time.monotonic() + GIVE_UP_S
        while left := [process for process in psutil.process_iter() if self._started(process)]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def _started(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("TVMBRIDGE_TEST_RUN") == self._mark
        except psutil.Error:  # it has just ended, or is not ours to look into
            return False


def kill_at_a_random_moment(run: Run, moments: random.Random, trials_left: int) -> str:
    """Kill while it starts or measures its first batch, as it writes that, or later; say which.

    Near the end of the budget always the first: the run must not end by itself.
    """
    kinds = ["starting", "starting", "writing", "later"]
    kind = moments.choice(kinds) if trials_left > 3 * BATCH else "starting"
    wait_s = moments.uniform(0.1, START_S)
    if kind != "starting":
        written = max(HEADER_BYTES, run.log.stat().st_size if run.log.exists() else 0)
        deadline = time.monotonic() + GIVE_UP_S
        while not (run.log.exists() and run.log.stat().st_size > written):
            assert time.monotonic() < deadline and not run.ended(), run.printed()
            time.sleep(0.001)
        wait_s = 0.0 if kind == "writing" else moments.uniform(0.0, 2.0)
    time.sleep(wait_s)
    assert not run.ended(), run.printed()
    run.kill()
    return kind


def trial_key(record: TrialRecord) -> tuple[str, str, str, int, str]:
    return record.kernel, record.target, record.template, record.template_version, record.config_key


def trials_of(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if not record.final]


def test_a_run_killed_twenty_times_spends_its_budget_once_and_loses_no_trial(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    moments, kinds = random.Random(20), set()
    seen: list[TrialRecord] = []
    for _ in range(KILLS):
        run = Run(tmp_path)
        kinds.add(kill_at_a_random_moment(run, moments, TRIALS - len(seen)))
        run.wait_for_all()
        if run.log.exists():
            records = list(read_log(run.log))
            assert records[: len(seen)] == seen
            assert len(records) <= TRIALS
            seen = records
    assert kinds == {"starting", "writing", "later"} and seen
    run = Run(tmp_path)
    status = run.wait(GIVE_UP_S * 2)
    run.wait_for_all()
    assert status == 0, run.printed()
    (target,) = json.loads(run.printed())["targets"]
    assert target["ended"] == f"{TRIALS} trials spent"
    assert (target["known"], target["trials"]) == (len(seen), TRIALS - len(seen))
    log = read_log(run.log)
    assert log.torn is None and list(log)[: len(seen)] == seen
    trials = trials_of(list(log))
    assert len(trials) == TRIALS
    assert len(set(map(trial_key, trials))) == TRIALS
