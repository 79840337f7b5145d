"""Our Target → TVM's: the only place that spells TVM's target attributes."""

from __future__ import annotations

from typing import Any

import tvm

from tvmbridge.targets import Target
from tvmbridge.targets.gpu_architectures import smallest_limits


def tvm_target(target: Target) -> tvm.target.Target:
    """Describe the target to TVM; for cuda, with the oldest of its architectures and the smallest of their limits."""
    cpu: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "num-cores": target.cores}
    # LLVM -O2: of its default, -O3, the kernels here are no faster and take a third longer to compile.
    cpu["opt-level"] = 2
    if target.features:
        cpu["mattr"] = list(target.features)
    if target.kind != "cuda":
        return tvm.target.Target(cpu)
    limits = smallest_limits(target.architectures)
    gpu: dict[str, Any] = {
        "kind": "cuda",
        "arch": target.architectures[0],
        "max_num_threads": limits.threads_per_block,
        "max_threads_per_block": limits.threads_per_block,
        "thread_warp_size": limits.warp_size,
        # What TVM's own schedules take is static.
        "max_shared_memory_per_block": limits.static_shared_bytes,
        "registers_per_block": limits.registers_per_block,
    }
    return tvm.target.Target(gpu, host=cpu)
