"""Tells a tracker how its device is, again and again, beside the connection on which TVM's server offers it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 5.0
# No key has a space: what is announced is never taken for a device that can be borrowed.
ANNOUNCED_AS = "server:health of "
DETAILS = "tvmbridge"
_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1  # Linux, include/uapi/linux/prctl.h


def start_announcing(
    tracker: tuple[str, int], key: str, address: str | None, port: int, describe: Callable[[], dict[str, Any]]
) -> int:
    """Fork a process that does so until the one that called ends; its process id.

    A process: the server's own forks one for each session, which a thread beside it could leave with a lock held.
    """
    parent = os.getpid()
    process_id = os.fork()
    if process_id:
        return process_id
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while os.getppid() == parent:  # it may have ended before the line above
            with contextlib.suppress(OSError, ValueError):  # the tracker is away, or was replaced by something else
                _announce(tracker, key, address, port, describe)
            time.sleep(EVERY_S)
    finally:
        os._exit(0)


def _announce(
    tracker: tuple[str, int], key: str, address: str | None, port: int, describe: Callable[[], dict[str, Any]]
) -> None:
    from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall, recvjson

    with socket.create_connection(tracker, timeout=_TIMEOUT_S) as connection:
        connection.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
        if struct.unpack("<i", recvall(connection, 4)) != (RPC_TRACKER_MAGIC,):
            raise ValueError("no tracker")
        while True:
            told = {"key": f"{ANNOUNCED_AS}{key}", "addr": [address, port], DETAILS: describe()}
            text = json.dumps([TrackerCode.UPDATE_INFO, told]).encode()
            connection.sendall(struct.pack("<i", len(text)) + text)
            recvjson(connection)
            time.sleep(EVERY_S)
