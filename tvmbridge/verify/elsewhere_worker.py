"""The process that holds a device's session while a bundle runs there: ended with it, however stuck it is.

Its last line is JSON: {"status", "said", "complained"} of `verify.worker` on the device; or {"none"} where there is no
device, {"unable"} where it cannot run bundles, {"lost"} where the session broke.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from tvm import rpc

from tvmbridge.device.server import RUN_BUNDLE
from tvmbridge.device.tracker import borrow_device
from tvmbridge.errors import reason
from tvmbridge.targets import RpcMeasure

_SENT = ("variant", "seconds", "threads")


def main(request_path: str) -> int:
    """Borrow a device, send the bundle and the samples, run, fetch the outputs, print what came of it."""
    request = json.loads(Path(request_path).read_text())
    place = msgspec.convert(request["place"], RpcMeasure)
    try:
        host, port, session_key = borrow_device(place, request["no_device_s"])
    except OSError as exc:
        print(json.dumps({"none": f"no device could be had: {reason(exc)}"}))
        return 0
    Path(request["borrowed"]).write_text(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    try:
        session = rpc.connect(host, port, session_key, request["session_s"])
        print(json.dumps(_run(session, request)))
    except Exception as exc:  # TVM raises many kinds where a session breaks
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        print(json.dumps({"lost": lines[-1] if lines else type(exc).__name__}))
    return 0


def _run(session: rpc.RPCSession, request: dict[str, Any]) -> dict[str, Any]:
    try:
        run = session.get_function(RUN_BUNDLE)
    except AttributeError:
        return {"unable": "its server runs no bundles: start `tvmbridge device serve` there"}
    session.upload(request["bundle"], "model.tvmb")
    names = [(f"in{index}.npz", f"out{index}.npz") for index in range(len(request["samples"]))]
    for path, (name, _) in zip(request["samples"], names, strict=True):
        session.upload(path, name)
    there = {name: request[name] for name in _SENT}
    there |= {"bundle": "model.tvmb", "reference": None}
    there |= {"samples": [name for name, _ in names], "outputs": [name for _, name in names]}
    done: dict[str, Any] = json.loads(run(json.dumps(there)))
    if done["status"] and "ModuleNotFoundError" in done["complained"]:
        last = done["complained"].strip().rpartition("\n")[2]
        return {"unable": f"it cannot run bundles: {last}; requirements-runtime.txt lists what that needs"}
    if done["status"] == 0 and "unsupported" not in json.loads(done["said"]):
        for path, (_, name) in zip(request["outputs"], names, strict=True):
            Path(path).write_bytes(session.download(name))
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
