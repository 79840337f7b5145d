"""What every GPU architecture offers a kernel: threads, registers, shared memory, tensor cores.

Sources: CUDA Programming Guide 13, "Compute Capabilities" (tables of features and of technical specifications) and its
table of arithmetic throughput; for sm_88, which it leaves out, `arch_traits.h` of NVIDIA's CUDA Core Compute Libraries:
that of sm_86. Multiprocessors and bandwidth: NVIDIA's data sheets and architecture white papers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_KIB = 1024
_TURING = frozenset({"float16", "int8"})
_AMPERE = _TURING | {"bfloat16", "tfloat32"}
_ADA = _AMPERE | {"float8"}


@dataclasses.dataclass(frozen=True)
class GpuLimits:
    """What a kernel may take on an architecture, or on all of several.

    multiprocessors, memory_bytes_per_cycle (global memory's bandwidth in cycles of the highest clock): of the largest
    device, which no architecture fixes: Quadro RTX 8000, A100, RTX A6000, Jetson AGX Orin (sm_87, and for want of
    anything else sm_88), L40, H100 SXM, B200, B300, Jetson Thor, RTX PRO 6000, DGX Spark.
    float32_lanes: multiply-adds of float32 that a multiprocessor does in a cycle.
    threads_per_sm, blocks_per_sm: resident at a time. registers: of 32 bits.
    shared_bytes_per_block: at most, for which a kernel has to use dynamic shared memory and ask the driver;
    static_shared_bytes: at most without.
    max_grid, max_block: extents along x, y and z.
    tensor_core_types: of the operands of the products that tensor cores compute.
    """

    multiprocessors: int
    memory_bytes_per_cycle: int
    float32_lanes: int
    threads_per_sm: int
    blocks_per_sm: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    tensor_core_types: frozenset[str]
    # The same on all of them so far.
    threads_per_block: int = 1024
    warp_size: int = 32
    registers_per_sm: int = 65536
    registers_per_block: int = 65536
    registers_per_thread: int = 255
    static_shared_bytes: int = 48 * _KIB
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    max_block: tuple[int, int, int] = (1024, 1024, 64)

    def registers_taken(self, threads: int, registers: int) -> int:
        """What a block of so many threads takes of the register file, where each uses so many registers.

        Registers are given out to whole warps, in units of 256, and warps to the four parts of an SM in turn, so that
        each of these has to have room for a quarter, rounded up (`cuda_occupancy.h` of the CUDA toolkit).
        """
        warps = -(-threads // self.warp_size)
        per_warp = -(-registers * self.warp_size // 256) * 256
        return -(-warps // 4) * 4 * per_warp


GPU_ARCHITECTURES: dict[str, GpuLimits] = {
    "sm_75": GpuLimits(72, 380, 64, 1024, 16, 64 * _KIB, 64 * _KIB, _TURING),
    "sm_80": GpuLimits(108, 1100, 64, 2048, 32, 164 * _KIB, 163 * _KIB, _AMPERE),
    "sm_86": GpuLimits(84, 430, 128, 1536, 16, 100 * _KIB, 99 * _KIB, _AMPERE),
    "sm_87": GpuLimits(16, 160, 128, 1536, 16, 164 * _KIB, 163 * _KIB, _AMPERE),
    "sm_88": GpuLimits(16, 160, 128, 1536, 16, 100 * _KIB, 99 * _KIB, _AMPERE),
    "sm_89": GpuLimits(142, 350, 128, 1536, 24, 100 * _KIB, 99 * _KIB, _ADA),
    "sm_90": GpuLimits(132, 1700, 128, 2048, 32, 228 * _KIB, 227 * _KIB, _ADA),
    "sm_100": GpuLimits(148, 4000, 128, 2048, 32, 228 * _KIB, 227 * _KIB, _ADA),
    "sm_103": GpuLimits(160, 4000, 128, 2048, 32, 228 * _KIB, 227 * _KIB, _ADA),
    "sm_110": GpuLimits(20, 170, 128, 1536, 24, 228 * _KIB, 227 * _KIB, _ADA),
    "sm_120": GpuLimits(188, 690, 128, 1536, 24, 100 * _KIB, 99 * _KIB, _ADA),
    "sm_121": GpuLimits(48, 110, 128, 1536, 24, 100 * _KIB, 99 * _KIB, _ADA),
}


def smallest_limits(architectures: Sequence[str]) -> GpuLimits:
    """What a kernel may take that is to run on each of them: the smallest of every limit."""
    each = [GPU_ARCHITECTURES[name] for name in architectures]
    smallest = {
        field.name: min(getattr(limits, field.name) for limits in each)
        for field in dataclasses.fields(GpuLimits)
        if field.type == "int"
    }
    common = frozenset.intersection(*(limits.tensor_core_types for limits in each))
    return dataclasses.replace(each[0], tensor_core_types=common, **smallest)
