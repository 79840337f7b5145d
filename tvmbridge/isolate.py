"""Runs work in a process of its own within limits: a crash there, or a limit passed, is an error here and no end.

No sandbox: the process has the user's rights. It protects this process from foreign code that crashes, hangs or grows
on a malformed model, not the machine from one that is malicious.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import IsolationError, TvmBridgeError, reason

Result = TypeVar("Result")

_PARENT = "TVMBRIDGE_ISOLATED_BY"  # the pid of the process that watches
_PR_SET_PDEATHSIG = 1  # Linux, include/uapi/linux/prctl.h
_LOOK_EVERY_S = 0.1
_INTERRUPT_GRACE_S = 30.0  # for what an interrupted run still writes
_SHARE_OF_MEMORY = 0.75
_HINT = "the model may be damaged or malformed; please report it if it is not"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an isolated process and all that it starts may take together.

    memory_bytes: of memory in use that is no mapped file; None: three quarters of this machine's. timeout_s: None: as
    long as it takes.
    """

    memory_bytes: int | None = None
    timeout_s: float | None = None

    @property
    def allowed_bytes(self) -> int:
        """`memory_bytes`, or what stands for None."""
        return self.memory_bytes if self.memory_bytes is not None else int(_SHARE_OF_MEMORY * _machine_bytes())


def call_isolated(
    function: Callable[..., Result], *arguments: Any, limits: Limits = Limits(), quiet: bool = False, **keywords: Any
) -> Result:
    """`function(*arguments, **keywords)` in a process of its own, which ends with it.

    function: of a module that can be imported; arguments and result must be picklable. A TvmBridgeError that it raises
    is raised here. quiet: show nothing of what it prints. Raises IsolationError where the process crashes, takes more
    than its limits or raises anything else.
    """
    if function.__module__ == "__main__":
        raise ValueError(f"{function.__qualname__} is in __main__, which another process cannot import")
    with tempfile.TemporaryDirectory(prefix="tvmbridge-isolated-") as name:
        request, result, said = (Path(name, part) for part in ("request", "result", "said"))
        # Two pickles: the function of the second is only found where the module path is that of the first.
        request.write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, arguments, keywords)))
        with said.open("wb") as stream:
            command = child_command("tvmbridge.isolate", str(request), str(result))
            output = stream if quiet else None
            code = run_within(limits, command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        if code == 130:
            raise KeyboardInterrupt
        if not result.exists():
            lines = said.read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1][:300]}" if lines else ""
            raise IsolationError(f"the isolated process ended with code {code}{last}", hint=_HINT)
        kind, value = pickle.loads(result.read_bytes())
    if kind == "error":
        raise _restore_error(*value)
    if kind == "unexpected":
        raise IsolationError(f"the isolated process failed: {value}", hint=_HINT)
    returned: Result = value
    return returned


def run_within(
    limits: Limits,
    command: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> int:
    """Run a command line of our own to its end, and give its exit code. The folder of its temporary files goes with it.

    Raises IsolationError where a signal or a limit ends it.
    Ctrl-C goes on to the command, which may end as it would without us; a second one, or half a minute, ends it.
    """
    with tempfile.TemporaryDirectory(prefix="tvmbridge-isolated-") as folder:
        process = subprocess.Popen(
            command,
            env=child_environment(**{_PARENT: str(os.getpid()), "TMPDIR": folder}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C of a terminal comes to us, and once: we hand it on
        )
        try:
            code = _watch(process, limits)
        except BaseException:
            _end(process)
            raise
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        name = signal.Signals(-code).name
        why = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
        raise IsolationError(f"the isolated process crashed: killed by {name}{why}", hint=_HINT)
    return code


def is_isolated() -> bool:
    """Whether this process was started by `run_within`."""
    return os.environ.get(_PARENT) == str(os.getppid())


def become_isolated() -> None:
    """In the process that `run_within` started: end when the one that watches ends, and leave no core file."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if not is_isolated():  # it has ended between our start and the line above
        os._exit(1)


def _watch(process: subprocess.Popen[bytes], limits: Limits) -> int:
    allowed_bytes, ends = (
        limits.allowed_bytes,
        None if limits.timeout_s is None else time.monotonic() + limits.timeout_s,
    )
    interrupted = False
    while True:
        try:
            try:
                return process.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                pass
            used_bytes = sum(map(_used_bytes, _family(process.pid)))
            if used_bytes > allowed_bytes:
                raise IsolationError(
                    f"the isolated process took more memory than {allowed_bytes / 1e9:.3g} GB and was ended",
                    hint="allow it more, with --isolate-memory or Limits(memory_bytes=…), if the model is that large",
                )
            if ends is not None and time.monotonic() > ends:
                if interrupted:
                    _end(process)
                    raise KeyboardInterrupt
                raise IsolationError(
                    f"the isolated process took longer than {limits.timeout_s:g} s and was ended",
                    hint="allow it more, with --isolate-minutes or Limits(timeout_s=…), if the model is that large",
                )
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted, ends = True, time.monotonic() + _INTERRUPT_GRACE_S
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)


def _end(process: subprocess.Popen[bytes]) -> None:
    family = list(_family(process.pid))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _family(pid: int) -> Iterator[int]:
    """The process and all that descend from it, the first first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent …", and a name may hold spaces and brackets
                parent = int(Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    waiting = [pid]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += children.get(found, ())


def _used_bytes(pid: int) -> int:
    """Memory of a process, also what is swapped out, without mapped files: those are the page cache's. 0: gone."""
    with contextlib.suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines())
        return 1024 * sum(int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssShmem:", "VmSwap:"))
    return 0


def _machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or "max"
        return min(installed, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return installed


def _restore_error(kind: type[TvmBridgeError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> TvmBridgeError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    vars(error).update(fields)
    return error


def main(request: str, result: str) -> int:
    """Call what the request file says, and write what came of it to the result file."""
    become_isolated()
    with open(request, "rb") as stream:
        sys.path[:] = pickle.load(stream)
        function, arguments, keywords = pickle.load(stream)
    answer: tuple[str, Any]
    try:
        answer = ("result", function(*arguments, **keywords))
    except TvmBridgeError as exc:
        answer = ("error", (type(exc), exc.args, vars(exc)))
    except KeyboardInterrupt:
        return 130
    except Exception as exc:  # the caller gets it as a value, whatever it is
        answer = ("unexpected", reason(exc))
    partial = Path(f"{result}.part")
    partial.write_bytes(pickle.dumps(answer))
    partial.rename(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
