"""Our Target → TVM's: the only place that spells TVM's target attributes."""

from __future__ import annotations

from typing import Any

import tvm

from tvmbridge.targets import Target

# What every architecture since sm_75 offers; TVM demands them where no GPU can be asked.
# Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
_CUDA_LIMITS = {
    "max_num_threads": 1024,
    "max_threads_per_block": 1024,
    "thread_warp_size": 32,
    "max_shared_memory_per_block": 49152,
}


def tvm_target(target: Target) -> tvm.target.Target:
    """Describe the target to TVM; for cuda, with the oldest of its architectures: code for it runs on all of them."""
    cpu: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu, "num-cores": target.cores}
    # LLVM -O2: of its default, -O3, the kernels here are no faster and take a third longer to compile.
    cpu["opt-level"] = 2
    if target.features:
        cpu["mattr"] = list(target.features)
    if target.kind != "cuda":
        return tvm.target.Target(cpu)
    return tvm.target.Target({"kind": "cuda", "arch": target.architectures[0], **_CUDA_LIMITS}, host=cpu)
