"""Asks a TVM RPC tracker: how many devices there are under a key, and for one of them to borrow."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall, recvjson

from tvmbridge.errors import reason
from tvmbridge.targets import RpcMeasure, Target

ANSWER_TIMEOUT_S = 5.0


def count_devices(place: RpcMeasure) -> int:
    """How many devices are registered under the key, busy ones included. OSError where no tracker answers."""
    with _connection(place) as tracker:
        status, summary = _ask(tracker, TrackerCode.SUMMARY)
        if status != TrackerCode.SUCCESS:
            raise OSError(f"the tracker answered {status} to a question for its devices")
        return sum(server.get("key") == f"server:{place.key}" for server in summary["server_info"])


def borrow_device(place: RpcMeasure) -> tuple[str, int, str]:
    """Wait until a device is free, without a limit: its host, its port, and the key that opens its next session.

    OSError where the tracker is lost.
    """
    with _connection(place) as tracker:
        tracker.settimeout(None)
        status, device = _ask(tracker, TrackerCode.REQUEST, place.key, "", 1)
        if status != TrackerCode.SUCCESS:
            raise OSError(f"the tracker answered {status} to a request for a device")
        host, port, session_key = device
        return host, port, session_key


def why_not_rpc(target: Target) -> str | None:
    """Why no candidate of a target with `measure: {rpc: …}` can be timed now; None if one can."""
    place = target.measure
    assert isinstance(place, RpcMeasure)
    try:
        devices = count_devices(place)
    except OSError as exc:
        return f"no TVM RPC tracker answers at {place.tracker} ({reason(exc)})"
    return None if devices else f"no device is registered under the key {place.key!r} at the tracker {place.tracker}"


@contextlib.contextmanager
def _connection(place: RpcMeasure) -> Iterator[socket.socket]:
    """A connection that has greeted. Whatever is wrong with the peer is an OSError."""
    host, _, port = place.tracker.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S) as tracker:
            # Questions and answers are packets of a few bytes, which would wait for each other.
            tracker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tracker.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
            if struct.unpack("<i", recvall(tracker, 4)) != (RPC_TRACKER_MAGIC,):
                raise OSError(f"what listens at {place.tracker} is no TVM RPC tracker")
            yield tracker
    except (ValueError, TypeError, LookupError, AttributeError) as exc:  # answers that are no tracker's
        raise OSError(f"what listens at {place.tracker} is no TVM RPC tracker: {reason(exc)}") from exc


def _ask(tracker: socket.socket, *question: Any) -> Any:
    text = json.dumps(question).encode()
    tracker.sendall(struct.pack("<i", len(text)) + text)
    return recvjson(tracker)
