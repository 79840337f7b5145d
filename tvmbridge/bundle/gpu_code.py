"""What the compilers say of a variant's GPU functions: how each is launched, and what its machine code takes."""

from __future__ import annotations

import msgspec


class MachineCode(msgspec.Struct, frozen=True):
    """One function's machine code for one architecture, in ptxas's words.

    registers: of each thread. shared_bytes: static, of each block.
    stack_bytes, spill_store_bytes, spill_load_bytes: of each thread, in local memory, which is the GPU's main memory:
    arrays with indices that only the run knows, and values for which there were no registers.
    """

    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def spills(self) -> bool:
        """Whether values are kept in local memory for want of registers."""
        return bool(self.spill_store_bytes or self.spill_load_bytes)


class GpuFunction(msgspec.Struct, frozen=True):
    """One function that runs on the GPU.

    name: its symbol. kernel: the name of the host's function that launches it; one may launch several.
    grid, block: extents along x, y and z; 0 where only the run knows.
    dynamic_shared_bytes: shared memory of each block that the launch asks for, besides what is static.
    code: for each architecture that ptxas compiled it for.
    """

    name: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int
    code: tuple[MachineCode, ...] = ()


class GpuFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of a variant's GPU code.

    toolkit: that compiled it, "nvcc 13.0.88". max_registers: that a thread of any kernel takes.
    spills: whether some kernel keeps values in local memory for want of registers. Both are None where the toolkit
    does not say.
    """

    toolkit: str
    max_registers: int | None
    spills: bool | None


class GpuBuild(msgspec.Struct, frozen=True):
    """All GPU functions of one library. toolkit: as in GpuFacts."""

    toolkit: str
    functions: tuple[GpuFunction, ...]

    @property
    def facts(self) -> GpuFacts:
        """What the manifest says of them."""
        codes = [code for function in self.functions for code in function.code]
        if not codes:
            return GpuFacts(self.toolkit, None, None)
        return GpuFacts(self.toolkit, max(code.registers for code in codes), any(code.spills for code in codes))
