"""CUDA devices: what the driver says becomes values, whatever it says, and so does what nvidia-smi says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.gpus import Gpu, Gpus, GpuState, find_gpus, parse_gpu_states, parse_gpus, read_gpu_states
from tvmbridge.host import run_command


def test_what_the_driver_says_becomes_gpus():
    devices = [["NVIDIA H100  80GB", 9, 0, 114, 1755000, 1593000], ["NVIDIA B200", 10, 0, 148, 0, 0]]
    first, second = Gpu("NVIDIA H100 80GB", "sm_90", 114, 1755, 1593), Gpu("NVIDIA B200", "sm_100", 148)
    told = {"devices": devices, "cuda": "13.0", "problem": None}
    assert parse_gpus(json.dumps(told)) == Gpus((first, second), "13.0")
    assert first.hardware == "NVIDIA H100 80GB, 114 SMs, 1755 MHz, memory 1593 MHz"
    assert (second.hardware, Gpu("NVIDIA A40", "sm_86").hardware) == ("NVIDIA B200, 148 SMs", "NVIDIA A40")


@given(st.none() | st.text(max_size=200) | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_can_come_from_the_process_that_asks(text: str | None):
    found = parse_gpus(text)
    assert bool(found.devices) == (found.problem is None)


def test_a_process_that_asks_and_dies_means_no_gpus_and_says_so():
    assert find_gpus(lambda command: None) == Gpus(problem="the NVIDIA driver gives no answer")


def test_the_driver_is_asked_in_another_process_and_may_be_missing(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libcuda.so.1").write_text("no library")
    found = find_gpus(run_command)
    assert found.devices == () and found.problem is not None and "no NVIDIA driver: " in found.problem
    assert "libcuda" not in Path("/proc/self/maps").read_text() and sys.executable


def test_an_emulated_device_is_known_by_its_name():
    assert Gpu("Emulated CUDA device", "sm_80").emulated and not Gpu("NVIDIA A100", "sm_80").emulated


def test_lines_of_nvidia_smi_become_states_and_what_is_not_said_is_none():
    lines = [
        "NVIDIA RTX, A6000, 580.65.06, 210, 2100, 405, 300.00, 31",
        "A card, 580.6, [N/A], 1980, 2619, [N/A], 40",
        "?",
    ]
    first, second = parse_gpu_states("\n".join(lines))
    assert first == GpuState("NVIDIA RTX, A6000", "580.65.06", 210, 2100, 405, 300, 31)
    assert (second.sm_mhz, second.memory_mhz, second.power_limit_w) == (None, 2619, None)
    assert str(first) == "NVIDIA RTX, A6000, driver 580.65.06, 210 of 2100 MHz, memory 405 MHz, at most 300 W, 31 °C"
    assert "? of 1980 MHz" in str(second)
    assert read_gpu_states(lambda command: None) == ()


@pytest.mark.parametrize(
    ("gpu", "code", "runs"),
    [
        ("sm_86", "sm_80", True),
        ("sm_80", "sm_86", False),
        ("sm_90", "sm_80", False),
        ("sm_90", "sm_90", True),
        ("sm_87", "sm_80", False),
        ("sm_89", "sm_87", False),
        ("sm_87", "sm_87", True),
        ("sm_121", "sm_120", True),
    ],
)
def test_gpu_code_runs_on_its_major_version_from_its_minor_on(gpu: str, code: str, runs: bool):
    assert Gpu("GPU", gpu).runs(code) is runs
