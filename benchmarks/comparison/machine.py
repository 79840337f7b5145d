"""Says what the figures depend on besides the programs' code."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

from tvmbridge.host import detect_host

PACKAGES = ("apache-tvm", "onnxruntime", "openvino", "numpy")


def describe_machine(cores: int, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What the figures depend on besides the programs' code. load_average: of others, as nothing is measured yet."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": detect_host().cpu_model,
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
