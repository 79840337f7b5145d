"""What a device says of itself: what it is, and whether its times are steady now. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmbridge.emulation import is_emulated
from tvmbridge.gpus import Gpu
from tvmbridge.version import __version__

_HOT_C = 80.0  # from about here on, boards lower their clock
_BUSY_LOAD = 0.5  # of one core, by others


def describe_device(
    threads: int, *, gpus: Sequence[Gpu] = (), busy: bool = False, root: Path = Path("/")
) -> dict[str, Any]:
    """Plain values for JSON.

    machine; emulated; threads that a kernel runs on; gpus: the name, architecture and emulated of each; tvmbridge's
    version; busy: whether a session is on; at: seconds since 1970 by the device's clock; health: as `read_health`.
    """
    return {
        "machine": platform.machine().lower(),
        "emulated": is_emulated(),
        "threads": threads,
        "gpus": [{"name": gpu.name, "architecture": gpu.architecture, "emulated": gpu.emulated} for gpu in gpus],
        "tvmbridge": __version__,
        "busy": busy,
        "at": time.time(),
        "health": read_health(root),
    }


def read_health(root: Path = Path("/")) -> dict[str, Any]:
    """governor: of the CPUs' clocks, several joined by "+"; temperature_c: of the hottest zone, degrees Celsius; load:
    processes that ran or waited to, the last minute's mean; mhz, max_mhz: of the slowest CPU, now and at most.

    None for what the kernel does not say, which a virtual machine's seldom does.
    """
    cpus = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    zones = root.glob("sys/class/thermal/thermal_zone*/temp")
    governors = dict.fromkeys(filter(None, (_read(cpu / "scaling_governor") for cpu in cpus)))
    temperatures = [value / 1000 for value in _numbers(zones)]
    load = next(iter(_read(root / "proc/loadavg").split()), "")
    return {
        "governor": "+".join(governors) or None,
        "temperature_c": max(temperatures, default=None),
        "load": _number(load),
        "mhz": min((value / 1000 for value in _numbers(cpu / "scaling_cur_freq" for cpu in cpus)), default=None),
        "max_mhz": min((value / 1000 for value in _numbers(cpu / "cpuinfo_max_freq" for cpu in cpus)), default=None),
    }


def health_warnings(health: Mapping[str, Any]) -> list[str]:
    """What makes the times of an idle device unsteady, in words; empty where nothing is known to."""
    governor, temperature_c, load = health.get("governor"), health.get("temperature_c"), health.get("load")
    warnings = []
    if governor is not None and governor != "performance":
        warnings.append(f"the governor is {governor}: `cpupower frequency-set -g performance` keeps the clock steady")
    if temperature_c is not None and temperature_c >= _HOT_C:
        warnings.append(f"it is {temperature_c:.0f} °C hot, and may lower its clock")
    if load is not None and load >= _BUSY_LOAD:
        warnings.append(f"something else runs there: the load is {load:.2f}")
    return warnings


def _numbers(paths: Iterator[Path]) -> Iterator[float]:
    for path in paths:
        if (value := _number(_read(path))) is not None:
            yield value


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text) if math.isfinite(float(text)) else None
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def usable_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
