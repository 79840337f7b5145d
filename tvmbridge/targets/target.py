"""One target: the hardware that code is built for, and where and how long it is tuned."""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from tvmbridge.host import Host
from tvmbridge.targets.llvm import usable_features
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.record import EMULATED

Kind = Literal["x86", "arm", "cuda"]
Precision = Literal["float32", "float16"]


class RpcMeasure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measure on a device that a TVM RPC tracker lends.

    tracker: "host:port". key: what the device is registered as. emulated: whether the devices of that key are emulated.
    """

    tracker: str
    key: str
    emulated: bool = False


Measure = Literal["local", "none"] | RpcMeasure


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one variant is built for.

    name: as declared, or made from the preset: "arm:cortex-a72" → "arm-cortex-a72".
    triple: LLVM's, of the CPU code; for cuda of the host's code.
    cpu, features: LLVM's names, of that CPU code; features as "+name" or "-name", sorted.
    cores: that parallel loops are split for.
    architectures: of a cuda target: ("sm_80", "sm_90"), by number; empty for the others.
    precision: "float32": everything is computed in the types that the model says. "float16", of cuda targets only:
    products multiply float16 and add float32, and what lies between kernels is float16 where that is safe.
    cuda_graphs: of a cuda target: whether kernels are launched in CUDA graphs, which no kernel's own time depends on.
    measure: where candidates are timed while tuning.
    budget: of tuning; None where the caller decides.
    hardware: what the measurements are taken on (CPU or GPU model, or the RPC key); None if nothing is measured.
    emulated: whether that is emulated: its times are no real machine's, and never stand for one's.
    """

    name: str
    kind: Kind
    triple: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    architectures: tuple[str, ...] = ()
    precision: Precision = "float32"
    cuda_graphs: bool = False
    measure: Measure = "none"
    budget: Budget | None = None
    hardware: str | None = None
    emulated: bool = False

    @property
    def machine(self) -> str:
        """ "x86_64" or "aarch64": the machine of the CPU code."""
        return self.triple.partition("-")[0]

    @property
    def cpu_features(self) -> frozenset[str]:
        """LLVM's names of the instruction-set features that the CPU code may use; the machine it runs on needs them."""
        return usable_features(self.machine, self.cpu, self.features)

    @property
    def vector_bits(self) -> int:
        """Width of the widest vector register for floats. On ARM that of NEON: code of a fixed width cannot count on
        SVE's."""
        if "avx512f" in self.cpu_features:
            return 512
        return 256 if "avx" in self.cpu_features else 128

    @property
    def vector_registers(self) -> int:
        """How many vector registers a kernel can keep accumulators in."""
        return 32 if self.machine == "aarch64" or "avx512f" in self.cpu_features else 16

    @property
    def key(self) -> str:
        """One line of everything that changes the code or a measured time; neither the name nor the budget does."""
        parts = [f"kind={self.kind}", f"triple={self.triple}", f"cpu={self.cpu}"]
        parts += [f"features={','.join(self.features)}"] if self.features else []
        parts += [f"cores={self.cores}"]
        parts += [f"architectures={','.join(self.architectures)}"] if self.architectures else []
        parts += [f"precision={self.precision}"] if self.precision != "float32" else []
        parts += [f"hardware={json.dumps(self.hardware)}"] if self.hardware is not None else []
        return " ".join(parts) + (EMULATED if self.emulated else "")


def why_not_local(target: Target, host: Host) -> str | None:
    """Why candidates for the target cannot be timed on this machine; None if they can.

    For a cuda target the host must have been detected with its GPUs.
    """
    if target.machine != host.machine:
        return f"this machine is {host.machine}, {target.name} is for {target.machine}"
    lacking = target.cpu_features - host.cpu_features
    if lacking:
        return f"the CPU of this machine ({host.cpu_model}) lacks {', '.join(sorted(lacking))}"
    if target.kind == "cuda":
        if not host.gpus:
            why = f": {host.no_gpu_because}" if host.no_gpu_because else ""
            return f"no CUDA GPU was found on this machine{why}"
        # TVM measures on device 0.
        gpu = host.gpus[0]
        if not any(gpu.runs(architecture) for architecture in target.architectures):
            return f"the GPU of this machine ({gpu.name}) is {gpu.architecture}, code is made for " + ", ".join(
                target.architectures
            )
    return None
