"""Work in another process: what it gives, and how its crash, its hunger and its sleep become errors here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests import ending_badly
from tests.processes import processes_below, wait_until_gone
from tvmbridge.errors import IsolationError, ShapeError
from tvmbridge.isolate import Limits, call_isolated


def test_a_result_comes_back():
    assert call_isolated(ending_badly.add, 2, b=3) == 5


def test_an_error_of_ours_comes_back_whole():
    with pytest.raises(ShapeError) as caught:
        call_isolated(ending_badly.raises_ours)
    assert caught.value.dimensions == ("x[0]=n",)
    assert (caught.value.message, caught.value.hint) == ("free", "bind it")


def test_a_foreign_error_is_told_in_one_line():
    with pytest.raises(IsolationError, match="LookupError: nowhere"):
        call_isolated(ending_badly.raises_foreign)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (ending_badly.reads_nothing_at_all, "SIGSEGV"),
        (ending_badly.divides_by_zero, "SIGFPE"),
        (ending_badly.aborts, "SIGABRT"),
        (ending_badly.is_killed, "SIGKILL, as the system does where memory runs out"),
    ],
)
def test_a_crash_is_an_error_that_names_the_signal(function, name):
    with pytest.raises(IsolationError, match=name):
        call_isolated(function, quiet=True)


def test_an_end_without_a_result_is_an_error_with_its_last_words():
    with pytest.raises(IsolationError, match="code 7: the last words"):
        call_isolated(ending_badly.leaves_with_a_code, quiet=True)


def test_a_process_that_hangs_is_ended_after_its_time():
    with pytest.raises(IsolationError, match=r"longer than 0\.5 s"):
        call_isolated(ending_badly.hangs_deaf, limits=Limits(timeout_s=0.5))
    assert processes_below(os.getpid()) == []


@pytest.mark.parametrize("function", [ending_badly.grows, ending_badly.grows_in_a_child])
def test_a_process_that_grows_is_ended_with_all_that_it_started(function):
    with pytest.raises(IsolationError, match=r"more memory than 0\.3 GB"):
        call_isolated(function, limits=Limits(memory_bytes=300_000_000, timeout_s=60))
    assert processes_below(os.getpid()) == []


def test_a_function_of_main_is_refused(monkeypatch):
    monkeypatch.setattr(ending_badly.add, "__module__", "__main__")
    with pytest.raises(ValueError, match="add is in __main__"):
        call_isolated(ending_badly.add, 1, 2)


def test_ctrl_c_goes_on_to_the_process():
    threading.Timer(1.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        call_isolated(ending_badly.hangs, limits=Limits(timeout_s=60))
    assert processes_below(os.getpid()) == []


def test_the_process_ends_with_the_one_that_watches(tmp_path):
    code = (
        "from tests import ending_badly; from tvmbridge.isolate import call_isolated\n"
        f"call_isolated(ending_badly.tells_its_pid_and_hangs, {str(tmp_path / 'pid')!r})"
    )
    watcher = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert watcher.poll() is None
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    watcher.kill()
    watcher.wait()
    wait_until_gone([worker])
    assert not worker.is_running()
