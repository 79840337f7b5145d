"""What tells a tracker how its device is: a program that needs no TVM, and ends with the process that started it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from processes import wait_until_gone

from tvmbridge.child import child_environment
from tvmbridge.device import announce
from tvmbridge.device.announce import ANNOUNCED_AS, DETAILS, TRACKER_MAGIC, UPDATE_INFO, Announcer
from tvmbridge.gpus import Gpu


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def receive(connection: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        part = connection.recv(size_bytes - len(data))
        assert part
        data += part
    return data


def greet(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(60)
    assert receive(connection, 4) == struct.pack("<i", TRACKER_MAGIC)
    connection.sendall(struct.pack("<i", TRACKER_MAGIC))
    return connection


def hear(connection: socket.socket) -> dict:  # type: ignore[type-arg]
    code, told = json.loads(receive(connection, *struct.unpack("<i", receive(connection, 4))))
    assert code == UPDATE_INFO
    connection.sendall(struct.pack("<i", 1) + b"0")
    return told


def test_a_tracker_hears_of_the_device_and_hears_again_after_it_was_away() -> None:
    with listening() as listener:
        gpus = [Gpu("NVIDIA H200", "sm_90")]
        announcer = Announcer(listener.getsockname(), "rpi4", None, 9091, 3, gpus)
        try:
            with greet(listener) as connection:
                told = hear(connection)
                assert (told["key"], told["addr"]) == (f"{ANNOUNCED_AS}rpi4", [None, 9091])
                assert (told[DETAILS]["threads"], told[DETAILS]["busy"]) == (3, False)
                assert told[DETAILS]["gpus"][0]["architecture"] == "sm_90"
                announcer.busy = True
                assert announcer.busy and hear(connection)[DETAILS]["busy"]
            announcer.busy = False
            with greet(listener) as connection:
                assert not hear(connection)[DETAILS]["busy"]
        finally:
            announcer.process.kill()
            announcer.process.wait()


def test_it_ends_with_the_process_that_started_it() -> None:
    with listening() as listener:
        host, port = listener.getsockname()
        code = "import sys, time; from tvmbridge.device.announce import Announcer\n"
        code += f"print(Announcer(({host!r}, {port}), 'k', None, 1, 1).process.pid, flush=True); time.sleep(600)"
        command = [sys.executable, "-c", code]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment())
        assert parent.stdout is not None
        program = psutil.Process(int(parent.stdout.readline()))
        with greet(listener) as connection:
            hear(connection)
            parent.kill()
            parent.communicate()
            wait_until_gone([program])


def test_it_imports_neither_tvm_nor_numpy() -> None:
    code = "import sys, tvmbridge.device.announce; print({'tvm', 'tvm_ffi', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert done.stdout.strip() == "set()"


@pytest.mark.compiler
def test_it_speaks_the_protocol_of_the_installed_tvm() -> None:
    from tvm.rpc import base

    assert (announce.TRACKER_MAGIC, announce.UPDATE_INFO) == (base.RPC_TRACKER_MAGIC, base.TrackerCode.UPDATE_INFO)
