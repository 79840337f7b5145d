"""A TVM RPC tracker and devices on this machine, each a process that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import psutil
from kernels import start_python

from tvmbridge.device.tracker import count_devices
from tvmbridge.targets import RpcMeasure, Target

# A device server for each line of arguments, forked from a process that has imported TVM once; says its process id.
_SERVERS = """
import os, signal, sys
import tvm.rpc.server
from tvmbridge.device import server
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        sys.stdin.close()
        sys.exit(server.main(line.split()))
    print(pid, flush=True)
"""


class Farm:
    """address: of the tracker. Devices live until they are killed, or the farm ends."""

    def __init__(self, address: str, servers: subprocess.Popen[str]) -> None:
        self.address = address
        self._servers = servers
        self._pids: set[int] = set()

    def place(self, key: str) -> RpcMeasure:
        return RpcMeasure(tracker=self.address, key=key)

    def target(self, target: Target, key: str) -> Target:
        """The same target, measured on the devices under the key."""
        return msgspec.structs.replace(target, measure=self.place(key), hardware=key)

    def start_devices(self, key: str, count: int, threads: int, *more: str) -> list[int]:
        """Start so many more devices and wait until the tracker knows them; their process ids. more: arguments."""
        known, pids = count_devices(self.place(key)), []
        for _ in range(count):
            assert self._servers.stdin is not None and self._servers.stdout is not None
            arguments = ["--port", str(free_port()), "--tracker", self.address, "--key", key]
            arguments += ["--threads", str(threads), *more]
            self._servers.stdin.write(" ".join(arguments) + "\n")
            self._servers.stdin.flush()
            pids.append(int(self._servers.stdout.readline()))
        self._pids.update(pids)
        wait_for(lambda: count_devices(self.place(key)) == known + count)
        return pids

    def kill(self, *pids: int) -> None:
        """SIGKILL a device with the session that it serves: to others it is as if its plug had been pulled."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._pids.discard(pid)

    def kill_all(self) -> None:
        self.kill(*self._pids)


def wait_for(condition, timeout_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def answers(place: RpcMeasure) -> bool:
    try:
        count_devices(place)
    except OSError:
        return False
    return True


def end(process: psutil.Process) -> None:
    """Kill a process and all below it."""
    for each in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


@contextlib.contextmanager
def running_farm() -> Iterator[Farm]:
    """A tracker, started as docs/distributed-tuning.md says, and no device yet."""
    port = free_port()
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    tracker = subprocess.Popen([*command, "--port-end", str(port + 1)], **quiet)  # type: ignore[call-overload]
    servers = start_python(_SERVERS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    farm = Farm(f"127.0.0.1:{port}", servers)
    try:
        wait_for(lambda: answers(farm.place("any")))
        yield farm
    finally:
        farm.kill_all()
        for process in (tracker, servers):
            end(psutil.Process(process.pid))
            process.communicate()
