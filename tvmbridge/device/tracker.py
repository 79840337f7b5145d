"""Asks a TVM RPC tracker: which devices there are, and for one of them to borrow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode, recvall, recvjson

from tvmbridge.device.announce import ANNOUNCED_AS, DETAILS
from tvmbridge.errors import reason
from tvmbridge.targets import RpcMeasure, Target

ANSWER_TIMEOUT_S = 5.0
_OFFERED_AS = "server:"


@dataclasses.dataclass(frozen=True)
class Device:
    """One that a tracker knows. address: "host:port", what the tracker tells who borrows it.

    details: what it says of itself (`health.describe_device`); None for TVM's own server, which says nothing, and for
    the seconds before a device has said it for the first time.
    """

    key: str
    address: str
    details: Mapping[str, Any] | None


def list_devices(tracker: str) -> tuple[Device, ...]:
    """All that the tracker at "host:port" knows, by key and address. OSError where no tracker answers."""
    found = _summary(tracker)
    details = {
        (server["key"].removeprefix(ANNOUNCED_AS), _join(server["addr"])): server.get(DETAILS)
        for server in found
        if server["key"].startswith(ANNOUNCED_AS)
    }
    offered = (
        (server["key"].removeprefix(_OFFERED_AS), _join(server["addr"]))
        for server in found
        if not server["key"].startswith(ANNOUNCED_AS)
    )
    return tuple(Device(key, address, details.get((key, address))) for key, address in sorted(offered))


def _join(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def count_devices(place: RpcMeasure) -> int:
    """How many devices are registered under the key, busy ones included. OSError where no tracker answers."""
    return sum(server.get("key") == f"{_OFFERED_AS}{place.key}" for server in _summary(place.tracker))


def _summary(address: str) -> list[dict[str, Any]]:
    with _connection(address) as tracker:
        status, summary = _ask(tracker, TrackerCode.SUMMARY)
        if status != TrackerCode.SUCCESS:
            raise OSError(f"the tracker answered {status} to a question for its devices")
        return list(summary["server_info"])


def borrow_device(place: RpcMeasure, timeout_s: float | None = None) -> tuple[str, int, str]:
    """Wait until a device is free: its host, its port, and the key that opens its next session.

    From then on it is lent to nobody else until that session ends. timeout_s: None to wait without a limit. OSError
    where the tracker is lost, or none was free in that time.
    """
    with _connection(place.tracker) as tracker:
        tracker.settimeout(timeout_s)
        status, device = _ask(tracker, TrackerCode.REQUEST, place.key, "", 1)
        if status != TrackerCode.SUCCESS:
            raise OSError(f"the tracker answered {status} to a request for a device")
        host, port, session_key = device
        return host, port, session_key


def why_not_rpc(target: Target) -> str | None:
    """Why no candidate of a target with `measure: {rpc: …}` can be timed now; None if one can."""
    assert isinstance(target.measure, RpcMeasure)
    return why_not_lent(target.measure)


def why_not_lent(place: RpcMeasure) -> str | None:
    """Why nobody can borrow a device of the key now, or wait for one that is lent; None if one can."""
    try:
        devices = count_devices(place)
    except OSError as exc:
        return f"no TVM RPC tracker answers at {place.tracker} ({reason(exc)})"
    return None if devices else f"no device is registered under the key {place.key!r} at the tracker {place.tracker}"


@contextlib.contextmanager
def _connection(address: str) -> Iterator[socket.socket]:
    """A connection that has greeted. Whatever is wrong with the peer is an OSError."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S) as tracker:
            # Questions and answers are packets of a few bytes, which would wait for each other.
            tracker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tracker.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
            if struct.unpack("<i", recvall(tracker, 4)) != (RPC_TRACKER_MAGIC,):
                raise OSError(f"what listens at {address} is no TVM RPC tracker")
            yield tracker
    except (ValueError, TypeError, LookupError, AttributeError) as exc:  # answers that are no tracker's
        raise OSError(f"what listens at {address} is no TVM RPC tracker: {reason(exc)}") from exc


def _ask(tracker: socket.socket, *question: Any) -> Any:
    text = json.dumps(question).encode()
    tracker.sendall(struct.pack("<i", len(text)) + text)
    return recvjson(tracker)
