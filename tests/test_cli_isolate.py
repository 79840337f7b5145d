"""--isolate: the same command in a process of its own, with its output and exit code, and errors for its crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import tests.onnx_models as models
from tests.processes import processes_below, wait_until_gone
from tvmbridge.cli.isolation import MINUTES, _default_minutes

pytestmark = pytest.mark.compiler

# Started with the interpreter of a child: what the import of a model does there is what the test says.
SABOTAGE = """
import os
if os.environ.get("TVMBRIDGE_ISOLATED_BY") == str(os.getppid()):
    from tests import ending_badly
    import tvmbridge.frontend.read as read
    read.parse_model = lambda *_: ending_badly.{}()
"""


@pytest.fixture
def start(tmp_path):
    """Start the command on a small model, in a folder of its own; sabotage: what reading the model does instead."""
    onnx.save(models.mlp(5), tmp_path / "model.onnx")
    started = []

    def call(*arguments: str, sabotage: str | None = None) -> subprocess.Popen[str]:
        search = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        if sabotage is not None:
            (tmp_path / "site").mkdir()
            (tmp_path / "site" / "sitecustomize.py").write_text(SABOTAGE.format(sabotage))
            search.insert(0, str(tmp_path / "site"))
        process = subprocess.Popen(
            [sys.executable, "-m", "tvmbridge", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()


def test_an_isolated_build_writes_shows_and_answers_as_any_other(start, tmp_path):
    process = start("build", "model.onnx", "--target", "native", "--trials", "2", "--isolate")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and (tmp_path / "model.tvmb").exists()
    assert "wrote model.tvmb" in out and "importing" in err and "tuned in" in err


def test_an_error_in_the_process_is_the_command_s(start, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    process = start("build", "model.onnx", "--target", "native", "--isolate", "--json")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and json.loads(out)["error"]["kind"] == "ModelFileError"


@pytest.mark.parametrize("command", ["build", "tune"])
def test_a_crash_is_an_error_and_the_command_s_exit_code_is_1(start, command):
    process = start(
        command, "model.onnx", "--target", "native", "--trials", "2", "--isolate", sabotage="reads_nothing_at_all"
    )
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "killed by SIGSEGV" in err and "hint:" in err


def test_a_crash_is_json_where_json_is_wanted(start):
    process = start("bench", "model.onnx", "--isolate", "--json", sabotage="aborts")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert json.loads(out)["error"]["kind"] == "IsolationError" and "SIGABRT" in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("sabotage", "limit", "words"),
    [
        ("hangs", ("--isolate-minutes", "0.1"), "longer than 6 s"),
        ("grows", ("--isolate-memory", "0.5"), "more memory than 0.5 GB"),
    ],
)
def test_a_limit_alone_isolates_and_is_an_error_when_it_is_passed(start, sabotage, limit, words):
    process = start("build", "model.onnx", "--target", "native", "--no-tune", *limit, sabotage=sabotage)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and words in err and limit[0] in err


def test_ctrl_c_ends_both_and_says_so_once(start):
    process = start("build", "model.onnx", "--target", "native", "--isolate", sabotage="hangs")
    while not processes_below(process.pid):
        time.sleep(0.05)
    time.sleep(3)
    below = processes_below(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("interrupted") == 1
    wait_until_gone(below)


def test_time_to_tune_is_allowed_beside_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no targets.yaml there
    tuning = {"targets_file": None, "names": ["native", "arm"], "trials": None, "express": False, "full": False}
    tuning |= {"until_converged": False, "logs": (), "engine": "templates", "cluster": None}
    assert _default_minutes({}) == MINUTES
    assert _default_minutes({**tuning, "minutes": 7.0}) == MINUTES + 14
    assert _default_minutes({**tuning, "minutes": 7.0, "no_tune": True}) == MINUTES
    assert _default_minutes({**tuning, "minutes": None}) == MINUTES
    assert _default_minutes({**tuning, "minutes": None, "trials": 8}) is None
    assert _default_minutes({**tuning, "minutes": None, "until_converged": True}) is None
