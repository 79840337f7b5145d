"""The program that lends a device to a TVM RPC tracker, and goes on lending it after a candidate has crashed there.

    python -m tvmbridge.device.server --tracker HOST:PORT --key KEY

`tvmbridge device serve` is the same. TVM's own server stops serving, and does not end, when the process of a session
crashes, as one candidate in a thousand makes it do. Measuring needs TVM and this package on the device, none of the
packages that it needs elsewhere; running bundles needs those of requirements-runtime.txt.

Whoever reaches its port can run any code on the device, and nothing is encrypted: it listens where only this machine
reaches it, and elsewhere only when told to.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tvmbridge.child import child_command, child_environment
from tvmbridge.cuda_runtime import load_cudart_of_tvm
from tvmbridge.device.announce import Announcer
from tvmbridge.device.health import describe_device, health_warnings, usable_cores
from tvmbridge.emulation import SAID_BY_HAND
from tvmbridge.gpus import Gpu, find_gpus
from tvmbridge.host import run_command

PORTS = range(9090, 9200)
DESCRIBE, RUN_BUNDLE = "tvmbridge.device.describe", "tvmbridge.device.run_bundle"  # what a session can call
_PAUSE_S = 0.2
_LONGEST_LEASE_S = 3600.0  # a client whose network went away does not keep the device for ever
_TUNNEL = "ssh -tt -R 9190:127.0.0.1:9190 -L 9091:127.0.0.1:9091 BOARD … --port 9091 (docs/distributed-tuning.md)"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Serve until the process is ended, by Ctrl-C for one. SystemExit where that cannot begin."""
    parser = _make_parser(program)
    options = parser.parse_args(arguments)
    tracker_host, _, tracker_port = options.tracker.rpartition(":")
    tracker_host = tracker_host.strip("[]")
    if not tracker_host or not tracker_port.isdigit():
        parser.error(f"--tracker: {options.tracker!r} is not HOST:PORT")
    if not options.insecure and not is_loopback(options.host):
        danger = f"--host {options.host}: whoever reaches it can run any code here; --insecure allows that."
        parser.error(f"{danger}\nA tunnel needs no such address: {_TUNNEL}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    if is_loopback(options.host) and not is_loopback(tracker_host) and options.address is None:
        logging.warning("%s is reached from this machine only, the tracker is elsewhere: %s", options.host, _TUNNEL)
    # TVM reads these once, when a session's process starts.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    # Bound to one CPU, a kernel would wait there for whoever else runs on it, as no application's call has to.
    os.environ["TVM_BIND_THREADS"] = "0"
    # A session is a fork, which under emulation at times never comes to life where this process has threads: NumPy's.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if options.emulated:
        os.environ[SAID_BY_HAND] = "1"
    listener = _listen(options.host, [options.port] if options.port else PORTS)
    port = listener.getsockname()[1]
    gpus = find_gpus(run_command).devices
    if options.json:
        device = describe_device(options.threads, gpus=gpus)
        print(json.dumps({"key": options.key, "port": port, **device}), flush=True)
    _report_health(options.threads, gpus)
    with contextlib.suppress(KeyboardInterrupt):
        _serve(listener, (tracker_host, int(tracker_port)), options.key, options.address, options.threads, gpus)
    return 0


def _make_parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Lend this device to a TVM RPC tracker until the process is ended.",
        epilog="example: %(prog)s --tracker 127.0.0.1:9190 --key rpi4",
    )
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="the tracker's address")
    parser.add_argument("--key", required=True, help="what the device is registered as; targets.yaml names it")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, help="the port to listen at (default: the first free one from 9090 on)")
    parser.add_argument("--address", help="what the tracker tells others to connect to (default: what it sees)")
    parser.add_argument(
        "--threads",
        type=int,
        default=usable_cores(),
        help="that a kernel runs on: the target's `cores` (default: the cores that this process may use)",
    )
    parser.add_argument(
        "--emulated", action="store_true", help="say that this machine is emulated; user-mode emulation is found out"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen at an address that others reach: they can run any code here"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document of what is lent, before serving")
    return parser


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name by all that it stands for, an unknown one is not."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(host) and all(ipaddress.ip_address(address).is_loopback for address in found)


def _listen(host: str, ports: range | list[int]) -> socket.socket:
    for port in ports:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as exc:
            listener.close()
            logging.info("port %d: %s", port, exc)
            continue
        listener.listen(1)
        return listener
    raise SystemExit(f"no port to listen at on {host}")


def _report_health(threads: int, gpus: Sequence[Gpu]) -> None:
    device = describe_device(threads, gpus=gpus)
    shown = ", ".join(f"{name} {value}" for name, value in device["health"].items() if value is not None)
    emulated = "emulated " if device["emulated"] else ""
    logging.info("%s%s, %d threads; %s", emulated, device["machine"], threads, shown or "the kernel says nothing")
    for number, gpu in enumerate(gpus):
        logging.info("cuda:%d: %s, %s", number, gpu.name, gpu.architecture)
    for warning in health_warnings(device["health"]):
        logging.warning("%s", warning)


def _serve(
    listener: socket.socket,
    tracker: tuple[str, int],
    key: str,
    address: str | None,
    threads: int,
    gpus: Sequence[Gpu],
) -> None:
    if gpus:
        load_cudart_of_tvm()  # TVM by itself does not find NVIDIA's wheel, and would do without its CUDA runtime
    import tvm_ffi
    from tvm.rpc import server

    home, port = os.getcwd(), listener.getsockname()[1]
    announcer = Announcer(tracker, key, address, port, threads, gpus)
    hold_session = server._serving

    def serve_session(connection: socket.socket, peer: Any, options: dict[str, float], libraries: Any) -> None:
        timeout_s = min(options.get("timeout") or _LONGEST_LEASE_S, _LONGEST_LEASE_S)
        announcer.busy = True
        try:
            hold_session(connection, peer, {**options, "timeout": timeout_s}, libraries)
        finally:
            # TVM asks a session that lasts too long to end, and lends the device on, whether it does or not.
            for session in multiprocessing.active_children():
                session.kill()
                session.join()
            announcer.busy = False
            connection.close()

    server._serving = serve_session
    tvm_ffi.register_global_func(
        DESCRIBE, lambda: json.dumps(describe_device(threads, gpus=gpus, busy=True)), override=True
    )
    tvm_ffi.register_global_func(RUN_BUNDLE, _run_bundle, override=True)
    logging.info("lending port %d as %r to the tracker %s:%d", port, key, *tracker)
    while True:
        try:
            server._listen_loop(listener, port, key, tracker, None, address)
        except Exception as exc:  # a session that crashed, a tracker that is away: the next one may do better
            logging.info("going on after: %s", exc)
        os.chdir(home)
        time.sleep(_PAUSE_S)


def _run_bundle(request: str) -> str:
    """In a session's process and folder: run a bundle as `tvmbridge.verify.worker` does; how that ended, as JSON.

    In a process of its own: this one has TVM's compiler in it, and what crashes is the bundle and not the session.
    """
    with open("request.json", "w") as file:
        file.write(request)
    environment = child_environment(TVMBRIDGE_CACHE=os.path.join(os.getcwd(), "cache"))
    done = subprocess.run(
        child_command("tvmbridge.verify.worker", "request.json"),
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return json.dumps({"status": done.returncode, "said": done.stdout, "complained": done.stderr[-4000:]})


if __name__ == "__main__":
    sys.exit(main())
