"""Measuring on the devices of an RPC tracker: any number of them, whatever becomes of them."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from kernels import lower_expression, lower_function, random_array, runnable_targets
from misbehaving import aborts, hangs, takes_its_time
from rpc_farm import Farm, free_port, running_farm, wait_for
from tvm import relax

from tvmbridge.child import child_environment
from tvmbridge.device import tracker
from tvmbridge.device.tracker import count_devices, why_not_rpc
from tvmbridge.errors import TuningError
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import fitting_templates
from tvmbridge.targets import RpcMeasure, Target, parse_preset
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure import Measurer, building, jobs, rpc
from tvmbridge.tuning.measure.building import name_candidate
from tvmbridge.tuning.measure.forks import ForkServer, JobEnd, describe
from tvmbridge.tuning.measure.jobs import Setting
from tvmbridge.tuning.measure.opening import open_measurer
from tvmbridge.tuning.measure.operands import RandomData
from tvmbridge.tuning.measure.reference import References
from tvmbridge.tuning.record import TrialRecord, render_config
from tvmbridge.tuning.tasks import Candidate, find_tasks

pytestmark = [pytest.mark.compiler, pytest.mark.slow, pytest.mark.timeout(120)]

NATIVE = runnable_targets()[0]
KEYS = (f"key{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def module_farm() -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture
def farm(module_farm: Farm) -> Iterator[Farm]:
    yield module_farm
    module_farm.kill_all()


def candidates(target: Target, count: int) -> list[Candidate]:
    """Ways to schedule a matmul."""
    weights = random_array(np.random.default_rng(0), (64, 64), "float32")
    lowered = lower_expression(
        lambda x: relax.op.matmul(x, relax.const(weights, "float32")), [((24, 64), "float32")], target
    )
    (task,) = find_tasks(lowered, target, LogRecords())
    return list(task.untried.values())[:count]


def measure(measurer: Measurer, batch: list[Candidate]) -> list[TrialRecord]:
    records = measurer.measure([(candidate, None) for candidate in batch])
    assert [(r.kernel, r.template, render_config(r.config)) for r in records] == [
        (c.kernel.key, c.template.name, render_config(c.config)) for c in batch
    ]
    return records


def untuned(kernel: Kernel, target: Target) -> Candidate:
    template = fitting_templates(kernel, target)[-1]
    return Candidate(kernel, template, template.guess(kernel, target))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_any_number_of_devices_measures_every_candidate(devices: int, farm: Farm) -> None:
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    farm.start_devices(key, devices, NATIVE.cores)
    assert why_not_rpc(target) is None
    batch = candidates(target, 12)
    with open_measurer([batch[0].kernel], target, seed=3) as measurer:
        assert measurer.devices == devices
        records = measure(measurer, batch)
    assert [record.error for record in records] == [None] * 12
    assert all(record.target == target.key and record.seed == 3 for record in records)
    assert 'hardware="key' in target.key
    assert all(record.median_us is not None for record in records)


def slow_kernel() -> Kernel:
    return lower_function(takes_its_time, "takes its time")


def fork_servers() -> list[psutil.Process]:
    own = psutil.Process().children()  # what they have forked has their command line
    living = [each for each in own if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in living if "tvmbridge.tuning.measure.fork_server" in each.cmdline()]


def later(delay_s: float, act: Callable[[], None]) -> None:
    """Do it from another thread, while this one waits in `measure`."""
    threading.Timer(delay_s, act).start()


def test_a_device_that_dies_in_the_middle_loses_no_candidate_and_is_used_again_when_it_is_back(farm: Farm) -> None:
    key = next(KEYS)
    target, kernel = farm.target(NATIVE, key), slow_kernel()
    first, _ = farm.start_devices(key, 2, NATIVE.cores)
    batch = [untuned(kernel, target)] * 4
    with open_measurer([kernel], target, seed=0) as measurer:
        later(0.8, lambda: farm.kill(first))
        records = measure(measurer, batch)
        assert [record.error for record in records] == [None] * 4
        assert measurer.devices == 1
        farm.start_devices(key, 1, NATIVE.cores)
        assert [record.error for record in measure(measurer, batch)] == [None] * 4
        assert measurer.devices == 2


def test_a_device_that_falls_silent_costs_its_session_only(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "UPLOAD_TIMEOUT_S", 12.0)
    monkeypatch.setattr(rpc, "RUN_TIMEOUT_S", 6.0)
    monkeypatch.setattr(rpc, "CONNECT_TIMEOUT_S", 3.0)
    monkeypatch.setattr(rpc, "_GRACE_S", 0.5)
    key = next(KEYS)
    target, kernel = farm.target(NATIVE, key), slow_kernel()
    first, _ = farm.start_devices(key, 2, NATIVE.cores)
    with open_measurer([kernel], target, seed=0) as measurer:
        later(0.8, lambda: os.killpg(first, signal.SIGSTOP))
        records = measure(measurer, [untuned(kernel, target)] * 4)
    assert [record.error for record in records] == [None] * 4


def test_no_device_left_is_an_error_that_says_how_to_go_on(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "NO_DEVICE_S", 3.0)
    key = next(KEYS)
    target, kernel = farm.target(NATIVE, key), slow_kernel()
    farm.start_devices(key, 2, NATIVE.cores)
    with open_measurer([kernel], target, seed=0) as measurer:
        workers = fork_servers()
        later(0.8, farm.kill_all)
        with pytest.raises(TuningError, match=rf"'{key}' at the tracker {farm.address}, for 3 s\n.*device serve --tr"):
            measure(measurer, [untuned(kernel, target)] * 8)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and alive == []


def test_a_candidate_that_breaks_its_device_costs_itself_only(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "UPLOAD_TIMEOUT_S", 12.0)
    monkeypatch.setattr(rpc, "RUN_TIMEOUT_S", 6.0)
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    # As docs/distributed-tuning.md says.
    command = [sys.executable, "-m", "tvmbridge.device.server", "--tracker", farm.address, "--key", key]
    server = psutil.Popen([*command, "--threads", str(NATIVE.cores)], env=child_environment(), start_new_session=True)
    try:
        wait_for(lambda: count_devices(farm.place(key)) == 1)
        kernels = [lower_function(function, name) for name, function in {"a": aborts, "h": hangs}.items()]
        kernels.append(slow_kernel())
        batch = [untuned(kernel, target) for kernel in kernels]
        with open_measurer(kernels, target, seed=0) as measurer:
            aborted, hung, fine = measure(measurer, batch)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert str(aborted.error).startswith("lost 3 devices, the last, 127.0.0.1:")
    assert "while running" in str(aborted.error)
    assert hung.error == "running took over 6 s"
    assert fine.error is None


def test_a_candidate_that_computes_something_else_is_refused_where_it_may_win(farm: Farm, tmp_path: Path) -> None:
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    farm.start_devices(key, 1, NATIVE.cores)
    negative, absolute = (
        lower_expression(operator, [((5, 7), "float32")], target).kernels[0]
        for operator in (relax.op.negative, relax.op.abs)
    )
    kernels = {k.key: k for k in (negative, absolute)}
    setting = Setting(kernels, target, (), RandomData(0), References(tmp_path))

    def timed(meant: Kernel, built: Kernel, best_us: float | None = None) -> dict[str, Any]:
        arguments = {**name_candidate(untuned(built, target)), "library": str(tmp_path / "it.so")}
        built_as = jobs.build(arguments, setting, lambda *_, **__: None)
        arguments |= {"kernel": meant.key, "best_us": best_us, "session_s": 60.0, **built_as}
        arguments["place"] = {"tracker": farm.address, "key": key}
        return jobs.time_there(arguments, setting, lambda *_, **__: None)

    assert "wrong result: " in timed(negative, absolute)["error"]
    assert len(timed(negative, negative)["times_us"]) >= 5
    assert len(timed(negative, absolute, best_us=1e-6)["times_us"]) == 1


def test_a_candidate_that_cannot_be_built_costs_itself_only(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    farm.start_devices(key, 1, NATIVE.cores)
    good, *_ = candidates(target, 1)
    odd = Candidate(good.kernel, good.template, {"nonsense": 1})
    with open_measurer([good.kernel], target, seed=0) as measurer:
        refused, fine = measure(measurer, [odd, good])
        monkeypatch.setattr(building, "BUILD_TIMEOUT_S", 0.0)
        (late,) = measure(measurer, [good])
    assert refused.error is not None and fine.error is None
    assert late.error == "compiling took over 0 s"


@pytest.mark.parametrize(
    ("preset", "unfit"),
    [
        ("native", r"runs a kernel on \d+ threads, where native has cores: \d+; start"),
        ("arm", r"is x86_64, arm is for a"),
    ],
)
def test_a_device_that_is_none_of_the_target_is_refused_by_name(preset: str, unfit: str, farm: Farm) -> None:
    key = next(KEYS)
    target = farm.target(msgspec.structs.replace(parse_preset(preset), cores=NATIVE.cores + 1), key)
    farm.start_devices(key, 1, NATIVE.cores)
    (candidate,) = candidates(target, 1)
    refusal = pytest.raises(TuningError, match=rf"the device 127\.0\.0\.1:\d+ {unfit}")
    with open_measurer([candidate.kernel], target, seed=0) as measurer, refusal:
        measure(measurer, [candidate])


def test_a_fork_server_that_has_nothing_to_do_ends_and_says_so_to_whom_comes_later() -> None:
    (candidate,) = candidates(NATIVE, 1)
    ends: queue.SimpleQueue[JobEnd] = queue.SimpleQueue()
    forks = ForkServer(describe([candidate.kernel], NATIVE), idle_s=0.3)
    forks.start()
    (worker,) = fork_servers()
    worker.wait(60)
    forks.submit("build", {}, {}, ends.put)
    assert ends.get(timeout=60) == JobEnd()
    forks.stop()


def test_a_fork_server_that_is_killed_is_an_error_that_says_how_to_go_on(farm: Farm) -> None:
    key = next(KEYS)
    target, kernel = farm.target(NATIVE, key), slow_kernel()
    farm.start_devices(key, 1, NATIVE.cores)
    with open_measurer([kernel], target, seed=0) as measurer:
        (worker,) = fork_servers()
        worker.kill()
        with pytest.raises(TuningError, match=r"status -9(.|\n)*hint: run the same command again"):
            measure(measurer, [untuned(kernel, target)])


def test_a_key_that_no_device_has_is_refused_with_the_trackers_address(farm: Farm) -> None:
    farm.start_devices(next(KEYS), 1, NATIVE.cores)
    target, kernel = farm.target(NATIVE, "rpi5"), slow_kernel()
    assert why_not_rpc(target) == f"no device is registered under the key 'rpi5' at the tracker {farm.address}"
    with pytest.raises(TuningError, match="no device is registered under the key 'rpi5'"):
        open_measurer([kernel], target, seed=0).__enter__()


@pytest.mark.parametrize("says", [None, b"", b"HTTP/1.1 400 Bad Request\r\n"], ids=["nobody", "silence", "http"])
def test_what_is_no_tracker_is_refused_with_its_address(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "ANSWER_TIMEOUT_S", 0.3)
    address = f"127.0.0.1:{free_port()}"
    target = msgspec.structs.replace(NATIVE, measure=RpcMeasure(tracker=address, key="k"))

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(says or b"")
            time.sleep(1.0)

    with socket.socket() as listener:
        if says is not None:
            listener.bind(("127.0.0.1", int(address.split(":")[1])))
            listener.listen()
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
        assert str(why_not_rpc(target)).startswith(f"no TVM RPC tracker answers at {address} (")
