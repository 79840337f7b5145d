"""docs/distributed-tuning.md, boards through SSH, as it stands there: an emulated ARM board that only SSH reaches."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from arm_board import ROOT, board_command
from rpc_farm import Farm, free_port, running_farm, wait_for

import tvmbridge
from tvmbridge.device.tracker import count_devices, list_devices
from tvmbridge.targets import parse_targets
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.log import read_log

pytestmark = [pytest.mark.arm, pytest.mark.timeout(900), pytest.mark.usefixtures("arm_board")]

DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
KEY = "behind-ssh"

# Debian's own scripts, which make the account, do not run where the board is made. What the board's environment says is
# handed on by hand: a session of SSH begins with none.
_SERVE_SSH = """
echo 'sshd:x:110:65534::/run/sshd:/usr/sbin/nologin' >> /etc/passwd
mkdir -p /run/sshd
exec /usr/sbin/sshd -i -f /dev/null -o HostKey="$KEYS/board" -o AuthorizedKeysFile="$KEYS/user.pub" -o StrictModes=no \\
    -o "SetEnv=PYTHONPATH=$PYTHONPATH PYTHONDONTWRITEBYTECODE=1 QEMU_CPU=$QEMU_CPU"
"""


@pytest.fixture
def farm() -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture
def ssh(arm_board: None, tmp_path: Path) -> list[str]:
    """The command `ssh` as a user has it configured for "board": a board on no network, at the end of a pipe."""
    for name in ("user", "board"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    start, shared = tmp_path / "serve_ssh", [ROOT, tmp_path]
    start.write_text(_SERVE_SSH)
    board = board_command("sh", start, tvm=True, offline=True, share=shared, PYTHONPATH=ROOT, KEYS=tmp_path)
    config = tmp_path / "config"
    config.write_text(
        "Host board\n"
        f"  ProxyCommand {shlex.join(board)}\n"
        f"  User root\n  IdentityFile {tmp_path / 'user'}\n"
        f"  UserKnownHostsFile {tmp_path / 'known'}\n  StrictHostKeyChecking accept-new\n"
    )
    return ["ssh", "-F", str(config)]


def serving(port: int) -> list[psutil.Process]:
    """The programs on boards, which are processes of this machine, that were told this port."""
    told = {"--port", str(port)}
    return [each for each in psutil.process_iter(["cmdline"]) if told <= set(each.info["cmdline"] or ())]


def test_a_board_that_only_ssh_reaches_is_tuned_for_and_verified_on(farm: Farm, ssh: list[str], tmp_path: Path) -> None:
    tracker, port = farm.address.rpartition(":")[2], free_port()
    forwardings = ["-R", f"{tracker}:127.0.0.1:{tracker}", "-L", f"{port}:127.0.0.1:{port}"]
    serve = ["--tracker", f"127.0.0.1:{tracker}", "--key", KEY, "--port", str(port), "--threads", "1"]
    command = [*ssh, "-tt", "-o", "ExitOnForwardFailure=yes", *forwardings, "board"]
    command += ["python3", "-m", "tvmbridge.device.server", *serve]
    said = tmp_path / "said"
    with said.open("w") as file:
        connection = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        wait_for(lambda: connection.poll() is not None or count_devices(farm.place(KEY)) == 1, timeout_s=300)
        assert connection.poll() is None, said.read_text()
        wait_for(lambda: None not in [device.details for device in list_devices(farm.address)], timeout_s=60)
        (device,) = list_devices(farm.address)
        assert device.address == f"127.0.0.1:{port}" and device.details is not None
        assert (device.details["machine"], device.details["emulated"]) == ("aarch64", True)

        measure = f"{{rpc: {{tracker: '{farm.address}', key: {KEY}, emulated: true}}}}"
        text = f"version: 1\ntargets: {{board: {{kind: arm, cpu: cortex-a72, cores: 1, measure: {measure}}}}}"
        (target,) = parse_targets(text, "targets.yaml")
        model, log = tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), tmp_path / "digits.tune.jsonl"
        assert tvmbridge.tune(model, target, budget=Budget(trials=6), log=log).trials == 6
        assert [(record.error, record.emulated) for record in read_log(log)] == [(None, True)] * 6
        bundle = tmp_path / "digits.tvmb"
        (outcome,) = tvmbridge.build(model, [target], bundle, tune=False, log=log, seconds=0.2).outcomes
        assert outcome.check is not None and outcome.check.accuracy is not None, outcome.error
        assert outcome.check.accuracy.max_relative < 1e-4
    finally:
        served = [each for each in serving(port) if each.pid != connection.pid]
        connection.terminate()
        connection.wait()
        _, left = psutil.wait_procs(served, timeout=60)
        for each in left:
            each.kill()
    # -tt: without a terminal, the program would stay on the board, and hold the port, after the connection is gone.
    assert served and left == []
