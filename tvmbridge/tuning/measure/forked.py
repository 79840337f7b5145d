"""Forked children of the worker: what they may do, how they are heard, and that nothing of them is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

_MEMORY_BYTES = 8 << 30  # of address space on top of what the process has: a runaway child fails its own allocation
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, include/uapi/linux/prctl.h


class Forked:
    """A forked child that runs `work(up, down)`: it writes lines of JSON to `up`, and reads from `down`.

    limits_memory: whether its address space is limited, of which CUDA takes all that it can get.
    """

    def __init__(self, index: int, work: Callable[[int, int], None], *, limits_memory: bool = True) -> None:
        self.index = index
        self.up, up_write = os.pipe()
        down_read, self._down = os.pipe()
        self._heard = b""
        self.restart_clock()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _become_a_child(parent, keep={up_write, down_read}, limits_memory=limits_memory)
                work(up_write, down_read)
            finally:
                os._exit(0)
        os.close(up_write)
        os.close(down_read)

    def restart_clock(self) -> None:
        """Count `elapsed_s` from now."""
        self._since = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """How long it has been at what it does."""
        return time.monotonic() - self._since

    @property
    def has_ended(self) -> bool:
        """Whether it is dead. A process that it has left behind can keep `up` open, which then does not tell."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def tell(self, message: dict[str, Any]) -> None:
        """Write it a line; where it has died meanwhile, what it says next is its end."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._down, json.dumps(message).encode() + b"\n")

    def hear(self) -> list[dict[str, Any]] | None:
        """The whole lines that it has written since, once `up` is readable; None where it has closed it."""
        more = os.read(self.up, 65536)
        *lines, self._heard = (self._heard + more).split(b"\n")
        return [json.loads(line) for line in lines] if more else None

    def end(self) -> str:
        """Kill it if it still lives, reap it, and say in words what ended it."""
        os.kill(self.pid, signal.SIGKILL)  # a dead child stays there to be signalled until it is reaped
        _, status = os.waitpid(self.pid, 0)
        os.close(self.up)
        os.close(self._down)
        if not os.WIFSIGNALED(status):
            return f"ended by itself with status {os.waitstatus_to_exitcode(status)}"
        name = signal.Signals(os.WTERMSIG(status)).name
        return (
            f"crashed with {name}" if name != "SIGKILL" else "killed by the system, as it does where memory runs out,"
        )


def adopt_orphans() -> None:
    """Become the parent of the processes that children leave behind: `end_orphans` finds them then."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_orphans(known: Collection[int]) -> None:
    """Kill and reap the children of this process that are not known, and theirs."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        try:
            orphans = {int(pid) for pid in children.read_text().split()} - set(known)
        except OSError:  # a kernel built without this list
            return
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _become_a_child(parent: int, keep: set[int], limits_memory: bool) -> None:
    """Set the limits of a process that runs code that nobody has tried."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)  # it may print without end, or read what is meant for the worker
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2 and int(entry.name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    with contextlib.suppress(OSError):  # not every system lets us say that this process is the first to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    if limits_memory:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
