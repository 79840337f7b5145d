"""Measuring on this machine: what a candidate can do without harm, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kernels import lower_function, runnable_targets, start_python
from misbehaving import (
    aborts,
    allocates,
    calls_nothing,
    eats_memory,
    forks,
    hangs,
    leaves,
    prints,
    reads_input,
    reads_wildly,
    works,
)
from processes import processes_below, wait_until_gone
from tvm import te

from tvmbridge.errors import TuningError
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import fitting_templates
from tvmbridge.tuning.measure import local
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.tasks import Candidate

pytestmark = pytest.mark.compiler

F32 = "float32"
NATIVE = runnable_targets()[0]


def untuned(kernel: Kernel, index: int = 0) -> Candidate:
    template = fitting_templates(kernel, NATIVE)[-1]
    return Candidate(kernel, template, template.configs(kernel, NATIVE)[index])


@pytest.mark.slow
def test_a_candidate_that_misbehaves_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RUN_TIMEOUT_S", 5.0)
    functions = {
        "works first": works(),
        "aborts": aborts,
        "reads wildly": reads_wildly,
        "hangs": hangs,
        "calls nothing": calls_nothing,
        "eats memory": eats_memory(),
        "allocates": allocates,
        "forks": forks,
        "leaves": leaves,
        "works although it prints": prints,
        "works although it reads": reads_input,
        "works last": works(),
    }
    kernels = [lower_function(function, name) for name, function in functions.items()]
    others = processes_below(os.getpid())  # of tests before this one: Python's own, for one, that watches shared memory
    with LocalMeasurer(kernels, NATIVE, seed=5) as measurer:
        (worker,) = (process for process in processes_below(os.getpid()) if process not in others)
        for _ in range(2):
            results = {r.kernel: r for r in measurer.measure([(untuned(kernel), None) for kernel in kernels])}
            assert processes_below(worker.pid) == []
    wait_until_gone([worker])
    assert list(results) == list(functions)
    errors = {name: str(result.error) for name, result in results.items()}
    for name, result in results.items():
        assert (result.error is None) == name.startswith("works"), result
        assert (result.median_us is None) == (result.error is not None)
        assert result.target == NATIVE.key and result.seed == 5
    assert errors["aborts"] == "crashed with SIGABRT while running"
    assert errors["reads wildly"] == "crashed with SIGSEGV while running"
    assert errors["hangs"] == "running took over 5 s"
    assert errors["calls nothing"] == "crashed with SIGSEGV while running"
    assert errors["eats memory"] == "failed while running: out of memory"
    assert errors["allocates"] == "crashed with SIGSEGV while running"
    assert errors["forks"] == "started another process"
    assert errors["leaves"] == "ended by itself with status 0 while running"


@pytest.mark.slow
def test_a_config_that_cannot_be_scheduled_says_so() -> None:
    kernel = lower_function(works(), "works")
    fine = untuned(kernel)
    broken = Candidate(kernel, fine.template, {})
    with LocalMeasurer([kernel], NATIVE, seed=0) as measurer:
        results = measurer.measure([(broken, None), (fine, None)])
    assert str(results[0].error).startswith("cannot be scheduled: KeyError: ")
    assert results[1].error is None


@pytest.mark.slow
def test_what_fails_beside_a_measurement_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RUN_TIMEOUT_S", 3.0)
    timed, working = untuned(lower_function(hangs, "hangs")), untuned(lower_function(works(), "works"))
    failing = Candidate(working.kernel, working.template, {})
    with LocalMeasurer([timed.kernel, working.kernel], NATIVE, seed=0, threads=1) as measurer:
        first, *others = measurer.measure([(timed, None), *[(failing, None)] * 40])
    assert first.error == "running took over 3 s"
    assert all(str(other.error).startswith("cannot be scheduled: ") for other in others)


@pytest.mark.slow
def test_a_candidate_that_compiles_too_long_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = lower_function(works(), "works")
    candidate = untuned(kernel)
    with LocalMeasurer([kernel], NATIVE, seed=0) as measurer:
        monkeypatch.setattr(local, "BUILD_TIMEOUT_S", 0.0)
        (slow,) = measurer.measure([(candidate, None)])
        monkeypatch.undo()
        (fine,) = measurer.measure([(candidate, None)])
    assert slow.error == "compiling took over 0 s"
    assert fine.error is None


@pytest.mark.slow
def test_every_dtype_can_be_measured() -> None:
    def doubled(dtype: str) -> Kernel:
        a = te.placeholder((64,), dtype, "a")
        return lower_function(te.create_prim_func([a, te.compute((64,), lambda i: a[i], "b")]), dtype)

    kernels = [doubled(d) for d in ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int64", "bool")]
    with LocalMeasurer(kernels, NATIVE, seed=0) as measurer:
        results = measurer.measure([(untuned(kernel), None) for kernel in kernels])
    assert {result.kernel: result.error for result in results} == {kernel.key: None for kernel in kernels}


@pytest.mark.slow
def test_a_hopeless_candidate_is_timed_once() -> None:
    kernel = lower_function(works(), "works")
    with LocalMeasurer([kernel], NATIVE, seed=0) as measurer:
        hopeless, hopeful = measurer.measure([(untuned(kernel), 1e-6), (untuned(kernel, 1), 1e9)])
    assert len(hopeless.times_us) == 1
    assert len(hopeful.times_us) > 1


@pytest.mark.slow
def test_a_measuring_process_that_is_killed_is_an_error_that_says_how_to_go_on() -> None:
    kernel = lower_function(works(), "works")
    others = processes_below(os.getpid())
    with LocalMeasurer([kernel], NATIVE, seed=0) as measurer:
        for process in processes_below(os.getpid()):
            if process not in others:
                process.kill()
        with pytest.raises(TuningError, match=r"ended with status -9(.|\n)*hint: run the same command again"):
            measurer.measure([(untuned(kernel), None)])


def test_a_measuring_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path(tmp_path, "tvm.py").write_text("raise ImportError('libnothing.so is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(TuningError, match=r"status 1: ImportError: libnothing\.so is missing"):
        LocalMeasurer([lower_function(works())], NATIVE, seed=0).__enter__()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextlib.contextmanager
def hanging(*, batch: int) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process that measures candidates that hang, and its worker, when the first of them is being measured."""
    program = (
        "import test_measure_local as t\n"
        "kernel = t.lower_function(t.hangs)\n"
        "t.local.RUN_TIMEOUT_S = 1e6\n"
        "with t.LocalMeasurer([kernel], t.NATIVE, seed=0) as measurer:\n"
        f"    measurer.measure([(t.untuned(kernel), None)] * {batch})"
    )
    with start_python(program) as process:
        wait_for(lambda: len(processes_below(process.pid)) > 1)
        yield process, psutil.Process(process.pid).children()[0]


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_process_that_tunes_ends_its_candidates_too(with_signal: signal.Signals) -> None:
    with hanging(batch=5) as (process, _):
        below = processes_below(process.pid)
        process.send_signal(with_signal)
        assert process.wait() != 0
        wait_until_gone(below)


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_worker_ends_its_candidates_too(with_signal: signal.Signals) -> None:
    with hanging(batch=5) as (process, worker):
        below = processes_below(worker.pid)
        worker.send_signal(with_signal)
        assert process.wait() != 0
        wait_until_gone(below)
