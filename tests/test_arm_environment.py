"""scripts/arm_environment.py where it fails: it says why, tells "not here" from "went wrong", and leaves nothing."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from arm_board import SCRIPT
from processes import wait_until_gone

NOT_POSSIBLE = 3
Tool = Callable[..., None]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Puts a command of this name, which runs these lines of sh, before all others of the script's PATH."""
    (tmp_path / "bin").mkdir()

    def put(name: str, lines: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)

    return put


def start(tmp_path: Path, *arguments: str, only: bool = False, prelude: str = "") -> subprocess.Popen[str]:
    """The script, as root would call it, Debian in reach. only: its PATH is the test's. prelude: runs before."""
    code = "import io, os, platform, runpy, sys, urllib.request; os.geteuid = lambda: 0; "
    code += f"platform.machine = lambda: 'x86_64'; urllib.request.urlopen = lambda *_, **__: io.BytesIO(); {prelude}"
    code += "\nsys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    path = f"{tmp_path / 'bin'}" + ("" if only else f":{os.environ['PATH']}")
    environment = {**os.environ, "PATH": path, "TVMBRIDGE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])
    command = [sys.executable, "-c", code, str(SCRIPT), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def call(tmp_path: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end."""
    process = start(tmp_path, *arguments, **options)
    said, errors = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def all_tools(tool: Tool) -> None:
    for name in ("debootstrap", "ip", "unshare", "mount", "ssh", "qemu-aarch64-static"):
        tool(name, "exit 0")


@pytest.mark.parametrize("action", ["check", "run"])
def test_without_a_board_it_says_how_to_make_one(tmp_path: Path, action: str) -> None:
    done = call(tmp_path, action)
    assert done.returncode == NOT_POSSIBLE
    assert "there is no board: python scripts/arm_environment.py" in done.stderr


def test_somebody_else_than_root_is_told_so(tmp_path: Path) -> None:
    done = call(tmp_path, prelude="os.geteuid = lambda: 1000")
    assert (done.returncode, done.stdout) == (NOT_POSSIBLE, "")
    assert "made as root" in done.stderr and "sudo" in done.stderr


def test_what_is_missing_and_cannot_be_installed_is_named(tmp_path: Path, tool: Tool) -> None:
    tool("mount", "exit 0")
    done = call(tmp_path, only=True)
    assert done.returncode == NOT_POSSIBLE
    missing = "debootstrap, iproute2, util-linux, openssh-client, qemu-user-static"
    assert f"{missing} is missing, and this is no Debian" in done.stderr


def test_tools_that_cannot_be_installed_are_no_failure_of_the_board(tmp_path: Path, tool: Tool) -> None:
    tool("apt-get", "echo 'Could not resolve the mirror'; exit 100")
    done = call(tmp_path, only=True)
    assert done.returncode == NOT_POSSIBLE
    assert "apt-get failed with status 100:\nCould not resolve the mirror" in done.stderr


def test_a_network_without_debian_is_no_failure_of_the_board(tmp_path: Path, tool: Tool) -> None:
    all_tools(tool)
    tool("debootstrap", f"touch {tmp_path}/called")
    unreachable = "\ndef urlopen(*_, **__): raise OSError('no route to it')\nurllib.request.urlopen = urlopen"
    done = call(tmp_path, prelude=unreachable)
    assert done.returncode == NOT_POSSIBLE and not (tmp_path / "called").exists()
    assert "deb.debian.org/debian is not reached from here: no route to it" in done.stderr


def test_of_a_board_that_another_machine_made_only_what_runs_it_is_installed(
    tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("apt-get", f'echo "$@" >> {tmp_path}/installed')
    monkeypatch.setenv("TVMBRIDGE_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(SCRIPT))["board_folder"]().mkdir(parents=True)
    call(tmp_path, only=True)
    installed = (tmp_path / "installed").read_text()
    assert installed.endswith("iproute2 util-linux mount openssh-client qemu-user-static\n")
    assert "debootstrap" not in installed


def test_a_kernel_that_forbids_it_is_quoted(tmp_path: Path, tool: Tool) -> None:
    all_tools(tool)
    tool("unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    done = call(tmp_path)
    assert done.returncode == NOT_POSSIBLE
    assert "Operation not permitted; it takes root with CAP_SYS_ADMIN" in done.stderr
    assert list((tmp_path / "cache").glob("arm64-*")) == []


def test_a_failure_half_way_is_quoted_and_leaves_nothing(tmp_path: Path, tool: Tool) -> None:
    all_tools(tool)
    tool("debootstrap", 'for root; do :; done; mkdir -p "$root/usr"; echo "E: no such mirror"; exit 7')
    (tmp_path / "cache" / "arm64-unfinished-of-a-killed-one" / "root").mkdir(parents=True)
    done = call(tmp_path)
    assert done.returncode == 1
    assert "debootstrap failed with status 7:\nE: no such mirror" in done.stderr
    assert list((tmp_path / "cache").glob("arm64-*")) == []


def test_ending_it_ends_what_it_started_and_leaves_nothing(tmp_path: Path, tool: Tool) -> None:
    all_tools(tool)
    tool("debootstrap", f"sleep 600 & echo $! > {tmp_path}/sleeper; wait")
    process = start(tmp_path)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "sleeper").exists() and time.monotonic() < until:
            time.sleep(0.05)
        sleeper = psutil.Process(int((tmp_path / "sleeper").read_text()))
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    wait_until_gone([sleeper])
    assert list((tmp_path / "cache").glob("arm64-*")) == []


def test_removing_takes_every_board_and_nothing_else(tmp_path: Path) -> None:
    for name in ("arm64-0123456789ab/root/usr", "arm64-unfinished-x", "other"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    done = call(tmp_path, "remove")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["other"]
