"""What a process may do that ends badly: functions that tests have called in another process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

from tvmbridge.errors import ShapeError


def add(a: int, b: int) -> int:
    return a + b


def reads_nothing_at_all() -> None:
    ctypes.string_at(0)


def divides_by_zero() -> None:
    os.kill(os.getpid(), signal.SIGFPE)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def aborts() -> None:
    os.abort()


def hangs() -> None:
    time.sleep(600)


def hangs_deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)


def grows() -> None:
    kept = []
    while True:
        kept.append(b"x" * (1 << 24))
        time.sleep(0.01)


def grows_in_a_child() -> None:
    code = "import time\nkept = []\nwhile True:\n    kept.append(b'x' * (1 << 24))\n    time.sleep(0.01)"
    subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False)


def leaves_with_a_code() -> None:
    print("the last words", flush=True)
    os._exit(7)


def raises_ours() -> None:
    raise ShapeError("free", dimensions=("x[0]=n",), hint="bind it")


def raises_foreign() -> None:
    raise LookupError("nowhere")


def tells_its_pid_and_hangs(path: str) -> None:
    with open(path, "w") as stream:
        stream.write(str(os.getpid()))
    time.sleep(600)
