"""Tells a tracker how its device is, again and again, beside the connection on which TVM's server offers it.

A program that the server starts and that ends with it. It imports neither TVM nor NumPy, so that it costs a board as
little as Python does. And it is no fork of the server, whose libraries have threads: a fork can wait for ever for what
those held.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from tvmbridge.child import child_command, child_environment
from tvmbridge.device.health import describe_device
from tvmbridge.gpus import Gpu

EVERY_S = 5.0
# No key has a space: what is announced is never taken for a device that can be borrowed.
ANNOUNCED_AS = "server:health of "
DETAILS = "tvmbridge"
TRACKER_MAGIC, UPDATE_INFO = 0x2F271, 5  # tvm.rpc.base: RPC_TRACKER_MAGIC, TrackerCode.UPDATE_INFO
_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1  # Linux, include/uapi/linux/prctl.h


class Announcer:
    """Starts the program for the device that this process lends. `busy`: set it where a session begins and ends."""

    def __init__(
        self,
        tracker: tuple[str, int],
        key: str,
        address: str | None,
        port: int,
        threads: int,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        shared = os.memfd_create("busy")  # one byte, which the program reads and forks of this process may set
        os.ftruncate(shared, 1)
        self._busy = mmap.mmap(shared, 1)
        told = {"tracker": tracker, "key": key, "addr": [address, port], "busy": shared, "parent": os.getpid()}
        told |= {"threads": threads, "gpus": [dataclasses.asdict(gpu) for gpu in gpus]}
        command = child_command(__name__, json.dumps(told))
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=[shared], env=child_environment()
        )
        os.close(shared)

    @property
    def busy(self) -> bool:
        """Whether a session is on."""
        return bool(self._busy[0])

    @busy.setter
    def busy(self, value: bool) -> None:
        self._busy[0] = value


def main() -> None:
    """Announce until the process that has started this one ends."""
    told = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    busy, gpus = mmap.mmap(told["busy"], 1), [Gpu(**gpu) for gpu in told["gpus"]]

    def describe() -> dict[str, Any]:
        details = describe_device(told["threads"], gpus=gpus, busy=bool(busy[0]))
        return {"key": f"{ANNOUNCED_AS}{told['key']}", "addr": told["addr"], DETAILS: details}

    while os.getppid() == told["parent"]:  # it may have ended before prctl was called
        with contextlib.suppress(OSError, ValueError):  # the tracker is away, or was replaced by something else
            _announce(tuple(told["tracker"]), describe)
        time.sleep(EVERY_S)


def _announce(tracker: tuple[str, int], describe: Callable[[], dict[str, Any]]) -> None:
    with socket.create_connection(tracker, timeout=_TIMEOUT_S) as connection, connection.makefile("rb") as answers:
        connection.sendall(struct.pack("<i", TRACKER_MAGIC))
        if struct.unpack("<i", _read(answers, 4)) != (TRACKER_MAGIC,):
            raise ValueError("no tracker")
        while True:
            text = json.dumps([UPDATE_INFO, describe()]).encode()
            connection.sendall(struct.pack("<i", len(text)) + text)
            _read(answers, *struct.unpack("<i", _read(answers, 4)))
            time.sleep(EVERY_S)


def _read(stream: BinaryIO, size_bytes: int) -> bytes:
    data = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise OSError("the tracker has closed the connection")
    return data


if __name__ == "__main__":
    main()
