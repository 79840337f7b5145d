"""Whether GPU functions can be launched where they are built for: what they take, held against the architectures."""

from __future__ import annotations

import math

from tvmbridge.bundle.gpu_code import GpuFunction
from tvmbridge.targets.gpu_architectures import GPU_ARCHITECTURES


def find_launch_fault(function: GpuFunction, architecture: str) -> str | None:
    """Why the function cannot be launched on the architecture; None where it can."""
    limits = GPU_ARCHITECTURES[architecture]
    threads = math.prod(function.block)
    for what, given, most in (("grid", function.grid, limits.max_grid), ("block", function.block, limits.max_block)):
        for axis, extent, limit in zip("xyz", given, most, strict=True):
            if extent > limit:
                return f"its {what} is {extent} along {axis}; at most {limit} are allowed"
    if threads > limits.threads_per_block:
        return f"its block has {threads} threads; at most {limits.threads_per_block} are allowed"
    for code in function.code:
        if code.architecture != architecture:
            continue
        shared = code.shared_bytes + function.dynamic_shared_bytes
        if shared > limits.shared_bytes_per_block:
            return f"a block takes {shared} bytes of shared memory; there are {limits.shared_bytes_per_block}"
        if code.shared_bytes > limits.static_shared_bytes:
            return f"{code.shared_bytes} bytes of shared memory are static; at most {limits.static_shared_bytes} may be"
        taken = limits.registers_taken(threads, code.registers)
        if taken > limits.registers_per_block:
            return (
                f"{threads} threads of {code.registers} registers take {taken} of them; "
                f"there are {limits.registers_per_block}"
            )
    return None
