"""The program on a device: where it listens, what it says of itself, and what a tracker tells of it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.device.health import describe_device, health_warnings, read_health
from tvmbridge.device.server import is_loopback, main


def machine(root: Path, governors: list[str], temperatures: list[str], load: str) -> Path:
    for index, governor in enumerate(governors):
        folder = root / f"sys/devices/system/cpu/cpu{index}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_cur_freq").write_text(f"{600000 + index}\n")
        (folder / "cpuinfo_max_freq").write_text("1800000\n")
    for index, temperature in enumerate(temperatures):
        folder = root / f"sys/class/thermal/thermal_zone{index}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(temperature)
    (root / "proc").mkdir()
    (root / "proc/loadavg").write_text(load)
    return root


def test_health_is_read_from_the_kernel(tmp_path):
    root = machine(tmp_path, ["performance", "performance"], ["48312\n", "51750\n", "broken\n"], "0.07 0.1 0.1 1/9 7\n")
    health = read_health(root)
    assert health == {"governor": "performance", "temperature_c": 51.75, "load": 0.07, "mhz": 600.0, "max_mhz": 1800.0}
    assert health_warnings(health) == []


def test_what_makes_times_unsteady_is_said(tmp_path):
    root = machine(tmp_path, ["ondemand", "schedutil"], ["84000\n"], "3.10 2 1 1/99 7\n")
    warnings = "; ".join(health_warnings(read_health(root)))
    assert all(word in warnings for word in ("ondemand+schedutil", "84 °C", "load is 3.10"))


def test_a_kernel_that_says_nothing_is_no_fault(tmp_path):
    health = read_health(tmp_path)
    assert set(health.values()) == {None} and health_warnings(health) == []
    assert json.loads(json.dumps(describe_device(2, root=tmp_path)))["health"] == health


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_of_the_kernel_is_health(tmp_path_factory, load, temperature):
    root = machine(tmp_path_factory.mktemp("root"), [], [temperature], load)
    health = read_health(root)
    assert all(value is None or isinstance(value, float) for value in health.values())
    assert json.loads(json.dumps(health, allow_nan=False)) == health
    assert all(isinstance(warning, str) for warning in health_warnings(health))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.3", "::1", "localhost"])
def test_loopback_is_open_to_this_machine_only(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "192.0.2.1", "no such name", "", "x" * 300])
def test_all_else_is_open_to_others(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::"])
def test_an_address_that_others_reach_is_refused_without_insecure(host, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--tracker", "127.0.0.1:9190", "--key", "k", "--host", host])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and f"--host {host}" in said and "--insecure" in said and "ssh -tt -R" in said


def test_with_insecure_it_may_listen_anywhere_and_says_where(monkeypatch, capsys):
    served = []
    monkeypatch.setattr("tvmbridge.device.server._serve", lambda listener, *rest: served.append((listener, *rest)))
    for name in ("TVM_NUM_THREADS", "TVM_BIND_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert (
        main(["--tracker", "[::1]:9190", "--key", "k", "--host", "0.0.0.0", "--insecure", "--threads", "3", "--json"])
        == 0
    )
    ((listener, tracker, key, address, threads, gpus),) = served
    assert list(gpus) == []
    with listener:
        assert listener.getsockname()[0] == "0.0.0.0" and listener.family == socket.AF_INET
        said = json.loads(capsys.readouterr().out)
        assert (said["key"], said["port"], said["threads"]) == ("k", listener.getsockname()[1], 3)
    assert (tracker, key, address, threads) == (("::1", 9190), "k", None, 3)


@pytest.mark.parametrize("tracker", ["9190", "host:", ":9190", "host:port"])
def test_a_tracker_without_host_and_port_is_refused(tracker, capsys):
    with pytest.raises(SystemExit):
        main(["--tracker", tracker, "--key", "k"])
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(monkeypatch, capsys):
    def interrupted(listener, *_rest):
        listener.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("tvmbridge.device.server._serve", interrupted)
    for name in ("TVM_NUM_THREADS", "TVM_BIND_THREADS", "OPENBLAS_NUM_THREADS", "TVMBRIDGE_EMULATED"):
        monkeypatch.setenv(name, "0")
    assert main(["--tracker", "127.0.0.1:9190", "--key", "k", "--emulated", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["emulated"] is True
