"""The process that runs the variants of a final check in turns, as the request file says that it is given.

A variant that crashes takes this process with it and not the tuning run, which never runs a kernel itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from tvmbridge.bundle.dtypes import restore
from tvmbridge.errors import TvmBridgeError
from tvmbridge.runtime import Session, load
from tvmbridge.verify.latency import time_in_turns

_ROUNDS = 7  # at least; the more, the surer
_BLOCK_S = 0.02  # of one variant in one round, where a few runs take less


def main(request_path: str) -> int:
    """Time the kernels in every variant, or every variant as a whole; print the times as JSON, or what is wrong."""
    request = json.loads(Path(request_path).read_text())
    try:
        with contextlib.ExitStack() as stack:
            sessions = {
                name: stack.enter_context(load(request["bundle"], variant=name, threads=request["threads"]))
                for name in request["variants"]
            }
            feeds = _read_feeds(request["inputs"], next(iter(sessions.values())))
            time_them = _time_kernels if request["each_kernel"] else _time_networks
            timed = time_them(sessions, feeds, request["seconds"])
    except TvmBridgeError as exc:
        print(exc.message)
        return 1
    print(json.dumps(timed))
    return 0


def _time_kernels(
    sessions: dict[str, Session], feeds: dict[str, np.ndarray], seconds: float
) -> dict[str, dict[str, list[float]]]:
    """By variant and kernel, one figure a round, in which all took their turn; as many rounds as fit, and a few."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in sessions}
    until = time.monotonic() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.monotonic() < until:
        for name, session in sessions.items():
            for kernel, time_us in session.time_kernels(feeds, seconds=_BLOCK_S).items():
                times[name].setdefault(kernel, []).append(time_us)
        rounds += 1
    return times


def _time_networks(
    sessions: dict[str, Session], feeds: dict[str, np.ndarray], seconds: float
) -> dict[str, list[float]]:
    """By variant, the median of each round; microseconds."""
    blocks = time_in_turns(
        [functools.partial(session.run, feeds) for session in sessions.values()], seconds=seconds, rounds=_ROUNDS
    )
    return {name: [statistics.median(block) * 1e6 for block in own] for name, own in zip(sessions, blocks, strict=True)}


def _read_feeds(path: str, session: Session) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {spec.name: restore(arrays[f"i{index}"], spec.dtype) for index, spec in enumerate(session.inputs)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
