"""Devices that are lent: to one at a time, only as what they are, and through tunnels."""

from __future__ import annotations

import itertools
import json
import select
import socket
import threading
from collections.abc import Iterator

import msgspec
import psutil
import pytest
from click.testing import CliRunner
from kernels import runnable_targets
from rpc_farm import Farm, free_port, running_farm, wait_for
from test_measure_rpc import candidates
from tvm import rpc

from tvmbridge.cli.device import device_group
from tvmbridge.device.server import DESCRIBE
from tvmbridge.device.tracker import borrow_device, list_devices
from tvmbridge.errors import TuningError
from tvmbridge.targets import Target
from tvmbridge.tuning.measure.opening import open_measurer

pytestmark = [pytest.mark.compiler, pytest.mark.slow, pytest.mark.timeout(180)]

NATIVE = runnable_targets()[0]
KEYS = (f"farm{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def module_farm() -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture
def farm(module_farm: Farm) -> Iterator[Farm]:
    yield module_farm
    module_farm.kill_all()


def emulated(farm: Farm, key: str, is_emulated: bool) -> Target:
    place = msgspec.structs.replace(farm.place(key), emulated=is_emulated)
    return msgspec.structs.replace(NATIVE, measure=place, hardware=key, emulated=is_emulated)


@pytest.mark.parametrize("is_emulated", [False, True])
def test_a_device_measures_only_for_targets_that_are_emulated_as_it_is(is_emulated: bool, farm: Farm) -> None:
    key = next(KEYS)
    farm.start_devices(key, 1, NATIVE.cores, *(["--emulated"] if is_emulated else []))
    target, other = emulated(farm, key, is_emulated), emulated(farm, key, not is_emulated)
    (candidate,) = candidates(target, 1)
    with open_measurer([candidate.kernel], target, seed=0) as measurer:
        (record,) = measurer.measure([(candidate, None)])
    assert (record.error, record.emulated, record.target) == (None, is_emulated, target.key)
    says = "is emulated" if is_emulated else "is not emulated"
    with open_measurer([candidate.kernel], other, seed=0) as measurer, pytest.raises(TuningError, match=says):
        measurer.measure([(candidate, None)])


def details(farm: Farm, key: str) -> list:  # type: ignore[type-arg]
    return [device.details for device in list_devices(farm.address) if device.key == key]


def test_a_device_is_lent_to_one_at_a_time_and_the_tracker_tells_of_it(farm: Farm) -> None:
    key = next(KEYS)
    farm.start_devices(key, 1, NATIVE.cores)
    host, port, session_key = borrow_device(farm.place(key))
    session = rpc.connect(host, port, session_key, session_timeout=60)
    told = json.loads(session.get_function(DESCRIBE)())
    assert told["busy"] and told["threads"] == NATIVE.cores and told["health"]["load"] >= 0
    with pytest.raises(OSError, match="timed out"):
        borrow_device(farm.place(key), timeout_s=1)
    wait_for(lambda: [device and device["busy"] for device in details(farm, key)] == [True])
    del session
    assert borrow_device(farm.place(key), timeout_s=30)[:2] == (host, port)
    wait_for(lambda: [device and device["busy"] for device in details(farm, key)] == [False])


def test_a_session_that_does_not_end_when_asked_is_killed_before_the_device_is_lent_again(farm: Farm) -> None:
    key = next(KEYS)
    (device,) = farm.start_devices(key, 1, NATIVE.cores)
    host, port, session_key = borrow_device(farm.place(key))
    before = psutil.Process(device).children()
    session = rpc.connect(host, port, session_key, session_timeout=3)
    (held,) = set(psutil.Process(device).children()) - set(before)
    held.suspend()  # it hears of nothing but SIGKILL
    assert borrow_device(farm.place(key), timeout_s=60)[:2] == (host, port)
    assert not held.is_running()
    del session


def test_two_jobs_share_a_device_and_each_gets_all_its_results(farm: Farm) -> None:
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    farm.start_devices(key, 1, NATIVE.cores)
    batch = candidates(target, 4)
    results: dict[int, list[str | None]] = {}

    def run(job: int) -> None:
        with open_measurer([batch[0].kernel], target, seed=job) as measurer:
            results[job] = [record.error for record in measurer.measure([(each, None) for each in batch])]

    jobs = [threading.Thread(target=run, args=(job,)) for job in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert results == {0: [None] * 4, 1: [None] * 4}


def test_the_command_lists_devices_for_people_and_for_programs(farm: Farm) -> None:
    key = next(KEYS)
    farm.start_devices(key, 1, 3, "--emulated")
    wait_for(lambda: None not in details(farm, key))
    shown = CliRunner().invoke(device_group, ["list", "--tracker", farm.address], standalone_mode=False)
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith(key)]
    assert "free" in line and "emulated" in line and " 3 " in line
    listed = CliRunner().invoke(device_group, ["list", "--tracker", farm.address, "--json"], standalone_mode=False)
    (device,) = [each for each in json.loads(listed.stdout) if each["key"] == key]
    assert device["details"]["emulated"] is True and device["details"]["threads"] == 3
    assert device["address"].startswith("127.0.0.1:") and device["tracker"] == farm.address


def relay(listen: tuple[str, int], to: tuple[str, int]) -> socket.socket:
    """What one forwarding of an SSH connection does: hand on the bytes of each connection, both ways."""

    def hand_on(one: socket.socket, other: socket.socket) -> None:
        peers = {one: other, other: one}
        with one, other:
            while True:
                for ready in select.select(list(peers), [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    peers[ready].sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=hand_on, args=(connection, socket.create_connection(to)), daemon=True).start()

    listener = socket.create_server(listen)
    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_a_device_behind_a_tunnel_is_used_as_any_other(farm: Farm) -> None:
    # 127.0.0.2 stands for the board: nothing that listens there is reached under 127.0.0.1.
    key, tracker_port, device_port = next(KEYS), int(farm.address.rpartition(":")[2]), free_port()
    target = farm.target(NATIVE, key)
    forwardings = [
        relay(("127.0.0.2", tracker_port), ("127.0.0.1", tracker_port)),  # ssh -R
        relay(("127.0.0.1", device_port), ("127.0.0.2", device_port)),  # ssh -L
    ]
    try:
        there = ["--host", "127.0.0.2", "--port", str(device_port), "--tracker", f"127.0.0.2:{tracker_port}"]
        farm.start_devices(key, 1, NATIVE.cores, *there)
        (device,) = [each for each in list_devices(farm.address) if each.key == key]
        assert device.address == f"127.0.0.1:{device_port}"
        batch = candidates(target, 3)
        with open_measurer([batch[0].kernel], target, seed=0) as measurer:
            records = measurer.measure([(each, None) for each in batch])
        assert [record.error for record in records] == [None] * 3
    finally:
        for listener in forwardings:
            listener.close()
