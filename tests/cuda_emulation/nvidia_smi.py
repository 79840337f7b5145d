"""Stands in for nvidia-smi: answers --query-gpu for the one emulated device."""

from __future__ import annotations

import os
import sys

_NAME, _DRIVER = "Emulated CUDA device", "580.00.00"


def main(arguments: list[str]) -> int:
    """Print a line of the fields that are asked for; what the device does not have is [N/A]."""
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("--query-gpu=")]
    if not asked:
        print(f"{_NAME}, driver {_DRIVER}")
        return 0
    known = {
        "name": _NAME,
        "gpu_name": _NAME,
        "index": "0",
        "count": "1",
        "driver_version": _DRIVER,
        "compute_cap": os.environ.get("CUDA_EMULATION_CAPABILITY", "8.0"),
        "memory.total": "8192",
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
    }
    fields = [field.strip() for field in asked[0].split(",")]
    layout = next((argument.partition("=")[2] for argument in arguments if argument.startswith("--format=")), "")
    if "noheader" not in layout:
        print(", ".join(fields))
    print(", ".join(known.get(field, "[N/A]") for field in fields))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
