"""The program that lends a device to a TVM RPC tracker, and goes on lending it after a candidate has crashed there.

    python -m tvmbridge.tuning.measure.device_server --tracker HOST:PORT --key KEY

TVM's own server stops serving, and does not end, when the process of a session crashes, as one candidate in a thousand
makes it do. This file needs TVM and nothing of tvmbridge: it can be copied to a device and run there by its path.

Whoever reaches its port can run any code on the device: use it in networks that you trust.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time

_PORTS = range(9090, 9200)
_PAUSE_S = 0.2


def main() -> int:
    """Serve until the process is ended from outside."""
    parser = argparse.ArgumentParser(description="Lend this device to a TVM RPC tracker.")
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT", help="the tracker's address")
    parser.add_argument("--key", required=True, help="what the device is registered as; targets.yaml names it")
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen at (default: all of this device)")
    parser.add_argument("--port", type=int, help="the port to listen at (default: the first free one from 9090 on)")
    parser.add_argument("--address", help="what the tracker tells others to connect to (default: what it sees)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="that a kernel runs on: the target's `cores` (default: the cores that this process may use)",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # TVM reads these once, when a session's process starts.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    # Bound to one CPU, a kernel would wait there for whoever else runs on it, as no application's call has to.
    os.environ["TVM_BIND_THREADS"] = "0"
    listener = _listen(options.host, [options.port] if options.port else _PORTS)
    host, _, port = options.tracker.rpartition(":")
    _serve(listener, (host.strip("[]"), int(port)), options.key, options.address)
    return 0


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


def _serve(listener: socket.socket, tracker: tuple[str, int], key: str, address: str | None) -> None:
    from tvm.rpc import server

    home = os.getcwd()
    logging.info("lending port %d as %r to the tracker %s:%d", listener.getsockname()[1], key, *tracker)
    while True:
        try:
            server._listen_loop(listener, listener.getsockname()[1], key, tracker, None, address)
        except Exception as exc:  # a session that crashed, a tracker that is away: the next one may do better
            logging.info("going on after: %s", exc)
        os.chdir(home)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    sys.exit(main())
