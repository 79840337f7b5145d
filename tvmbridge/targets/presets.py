"""Targets from one word: native, x86, x86:CPU, x86-64-v3, arm, arm:CPU, cuda:sm_80,sm_90, cuda:sm_80,float16,graphs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tvmbridge.errors import TargetError
from tvmbridge.host import Host, detect_host
from tvmbridge.targets.gpu_architectures import GPU_ARCHITECTURES
from tvmbridge.targets.llvm import (
    check_cpu,
    check_features,
    close_matches,
    cpu_aliases,
    implied_features,
    llvm_cpus,
    shown,
    usable_features,
)
from tvmbridge.targets.target import Kind, Precision, Target

DEFAULT_CPU = {"x86_64": "x86-64-v3", "aarch64": "generic"}
DEFAULT_CORES = 4
DEFAULT_CUDA_HOST = "x86-64-v3"
CUDA_ARCHITECTURES = tuple(GPU_ARCHITECTURES)
PRESET_FORMS = (
    "native, x86, x86:CPU, x86-64-v2, x86-64-v3, x86-64-v4, arm, arm:CPU, cuda:sm_NN[,sm_NN…][,float16][,graphs]"
)

_MACHINES = {"x86": "x86_64", "arm": "aarch64"}
_X86_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")
# What `native` adds to the level (x86) or to plain armv8-a (arm) where the host shows it: the features that make
# numeric kernels faster. Others would only tie the bundle closer to this one machine.
_NATIVE_EXTRAS = {
    "x86_64": """
        avx512bf16 avx512fp16 avx512vnni avx512vbmi avx512vbmi2 avx512ifma avx512bitalg avx512vpopcntdq gfni
        avxvnni avxvnniint8 avxvnniint16 avxifma avxneconvert
        amx-tile amx-int8 amx-bf16 amx-fp16 amx-complex""",
    "aarch64": "lse rdm dotprod fullfp16 fp16fml i8mm bf16 complxnum sve sve2",
}


class Cpu(NamedTuple):
    """The CPU half of a target."""

    machine: str
    cpu: str
    features: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """The kind of a target whose code runs on this CPU alone."""
        return "x86" if self.machine == "x86_64" else "arm"

    @property
    def triple(self) -> str:
        """LLVM's triple for Linux on this CPU."""
        return f"{self.machine}-linux-gnu"


def parse_preset(text: str, *, host: Host | None = None) -> Target:
    """The target that a preset names; raises TargetError.

    host: this machine, for "native"; detected where not given. "native" is measured here, the others nowhere; their
    cores are DEFAULT_CORES, those of "native" the usable ones of the host.
    """
    try:
        return target_of_preset(text, host)
    except TargetError as exc:
        raise TargetError(f"target {shown(text)}: {exc.message}", hint=exc.hint) from exc


def target_of_preset(text: str, host: Host | None) -> Target:
    """As parse_preset; the messages leave it to the caller to say where the preset stands."""
    preset = text.strip()
    name = re.sub(r"\s*[:,]\s*", "-", preset)
    kind, _, rest = preset.partition(":")
    if kind == "cuda":
        parts = [part.strip() for part in rest.split(",")] if rest.strip() else []
        graphs = parts[-1:] == ["graphs"]
        parts = parts[:-1] if graphs else parts
        precision: Precision = "float16" if parts[-1:] == ["float16"] else "float32"
        architectures = check_architectures(parts[:-1] if precision == "float16" else parts)
        cpu = parse_cpu(DEFAULT_CUDA_HOST, host)
        return Target(
            name,
            "cuda",
            cpu.triple,
            cpu.cpu,
            cpu.features,
            DEFAULT_CORES,
            architectures=architectures,
            precision=precision,
            cuda_graphs=graphs,
        )
    if preset == "native":
        here = host or detect_host()
        cpu = native_cpu(here)
        return Target(
            name,
            cpu.kind,
            cpu.triple,
            cpu.cpu,
            cpu.features,
            here.cores,
            measure="local",
            hardware=here.cpu_model,
            emulated=here.emulated,
        )
    cpu = parse_cpu(preset, host)
    return Target(name, cpu.kind, cpu.triple, cpu.cpu, cpu.features, DEFAULT_CORES)


def parse_cpu(text: str, host: Host | None) -> Cpu:
    """The CPU that "native", "x86", "x86:CPU", "x86-64-v3", "arm" or "arm:CPU" names; raises TargetError."""
    if text == "native":
        return native_cpu(host or detect_host())
    if text in _X86_LEVELS:
        return Cpu("x86_64", text, ())
    kind, colon, cpu = text.partition(":")
    if kind in _MACHINES:
        machine = _MACHINES[kind]
        cpu = cpu.strip() if colon else DEFAULT_CPU[machine]
        cpu = cpu_aliases(machine).get(cpu, cpu)
        check_cpu(machine, cpu)
        return Cpu(machine, cpu, ())
    for known, machine in _MACHINES.items():
        if text in llvm_cpus(machine) or text in cpu_aliases(machine):
            raise TargetError(f"a preset starts with the kind, {shown(text)} is only the cpu", hint=f"{known}:{text}")
    raise TargetError(
        f"no such preset{close_matches(text, ['native', 'cuda', *_MACHINES, *_X86_LEVELS])}",
        hint=f"one of: {PRESET_FORMS}",
    )


def native_cpu(host: Host) -> Cpu:
    """The fastest code that this machine certainly runs: only what /proc/cpuinfo shows is used.

    x86: the highest x86-64 level that is fully there. arm: plain armv8-a. Both with the extra features that are there
    and whose implied features are there too.
    """
    if host.machine not in DEFAULT_CPU:
        raise TargetError(
            f"this machine is {host.machine}; code is made for x86_64 and aarch64",
            hint="name another target than native",
        )
    levels = _X86_LEVELS if host.machine == "x86_64" else ("generic",)
    fitting = (level for level in levels if usable_features(host.machine, level, ()) <= host.cpu_features)
    # The last one is the baseline of the machine: it holds where the kernel does not list features, too.
    cpu = next(fitting, levels[-1])
    present = host.cpu_features - usable_features(host.machine, cpu, ())
    extras = (name for name in _NATIVE_EXTRAS[host.machine].split() if name in present)
    whole = [name for name in extras if implied_features(host.machine, name) <= host.cpu_features]
    return Cpu(host.machine, cpu, tuple(sorted(f"+{name}" for name in whole)))


def check_cpu_features(cpu: Cpu, features: Sequence[str]) -> Cpu:
    """The CPU with these "+name" and "-name" on top of its own; raises TargetError."""
    merged = [*cpu.features, *features]
    check_features(cpu.machine, cpu.cpu, merged)
    return cpu._replace(features=tuple(sorted(merged)))


def check_architectures(architectures: Sequence[str]) -> tuple[str, ...]:
    """The architectures sorted by number; raises TargetError for none, an unknown one or one named twice."""
    if not architectures:
        raise TargetError("a cuda target names its GPU architectures", hint="for example cuda:sm_80,sm_90")
    for index, name in enumerate(architectures):
        if name not in CUDA_ARCHITECTURES:
            raise TargetError(
                f"no such GPU architecture {shown(name)}{close_matches(name, CUDA_ARCHITECTURES)}",
                hint=f"one of: {', '.join(CUDA_ARCHITECTURES)}",
            )
        if name in architectures[:index]:
            raise TargetError(f"the GPU architecture {name} is named twice")
    return tuple(sorted(architectures, key=CUDA_ARCHITECTURES.index))
