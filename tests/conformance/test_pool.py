"""A case that crashes or hangs is an outcome, and the run goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.conformance.engines import CRASH, PASS, TIMEOUT, Result
from tests.conformance.pool import Task, run_tasks

pytestmark = pytest.mark.slow


def misbehave(engine, case):
    if case.name == "test_acos":
        os.kill(os.getpid(), signal.SIGSEGV)
    if case.name == "test_acosh":
        os._exit(3)
    if case.name == "test_add":
        time.sleep(600)
    return Result(case.name, PASS, engine)


def test_a_crash_and_a_hang_are_outcomes_of_their_cases_alone():
    found = {}
    names = ["test_abs", "test_acos", "test_acosh", "test_add", "test_and2d", "test_argmax_default_axis_example"]
    run_tasks(
        [Task("engine", name) for name in names],
        timeout_s=2,
        on_result=lambda task, result: found.update({task.case: result}),
        run=misbehave,
    )
    assert {name: found[name].outcome for name in names} == {
        **dict.fromkeys(names, PASS),
        "test_acos": CRASH,
        "test_acosh": CRASH,
        "test_add": TIMEOUT,
    }
    assert found["test_acos"].reason == "SIGSEGV" and found["test_acosh"].reason == "exit status 3"
    assert found["test_abs"].reason == "engine"
