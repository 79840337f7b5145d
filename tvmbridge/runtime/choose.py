"""Which variant of a bundle fits a machine, and why: from the manifest, before anything of the bundle is loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tvmbridge.bundle import Bundle, Manifest, VariantEntry, open_bundle
from tvmbridge.errors import NoVariantError
from tvmbridge.host import Host, detect_host
from tvmbridge.runtime.devices import Device, parse_device, why_no_cuda

Level = Literal["optimal", "supported", "rebuild advised", "unsupported"]


@dataclass(frozen=True)
class Verdict:
    """How one variant fits a host.

    level: "optimal" uses the host's widest vectors and all its cores, or has code for exactly its GPU; "supported" runs
        with less than that; "rebuild advised" runs at a fraction of the speed; "unsupported" does not run.
    reason: why it is not better; for "optimal", what fits.
    """

    variant: str
    level: Level
    reason: str


@dataclass(frozen=True)
class Software:
    """The versions that variants are held against; None for what is not there.

    tvm_ffi, tvm: installed distributions. imported_tvm: the tvm that this process has imported.
    unloadable: why the runtime libraries of a variant, by its name, would not load here.
    """

    tvm_ffi: str | None
    tvm: str | None
    imported_tvm: str | None
    unloadable: Mapping[str, str] = field(default_factory=dict)


def check_bundle(path: str | os.PathLike[str], *, device: str | None = None) -> tuple[Verdict, ...]:
    """How each variant of a bundle fits this machine, best first; reads the manifest, and nothing that is loaded.

    device: "cpu", "cuda", "cuda:1": only what runs there fits; None: the CPU and GPU 0 count.
    Raises ArtifactError children for what is no usable bundle; a bundle without a fitting variant is no error here.
    """
    wanted = None if device is None else parse_device(device)
    with open_bundle(path) as bundle:
        host = detect_host_for(bundle.manifest, wanted)
        return judge_variants(bundle.manifest, host, detect_software_for(bundle, host), wanted)


def detect_host_for(manifest: Manifest, device: Device | None = None) -> Host:
    """This machine; the driver is asked for GPUs only where a variant needs one that may be used."""
    cuda = device is None or device.kind == "cuda"
    return detect_host(gpus=cuda and any(variant.kind == "cuda" for variant in manifest.variants))


def detect_software_for(bundle: Bundle, host: Host) -> Software:
    """What is installed, and what keeps the bundle's CUDA variants from loading on a machine that has a GPU."""
    software = detect_software()
    variants = [variant for variant in bundle.manifest.variants if variant.kind == "cuda" and host.gpus]
    reasons = {v.name: why_no_cuda(bundle, v, host, find_installed_libraries(v.tvm)) for v in variants}
    return replace(software, unloadable={name: reason for name, reason in reasons.items() if reason is not None})


def detect_software() -> Software:
    """What is installed, and which tvm is imported; imports nothing."""
    return Software(
        tvm_ffi=_installed_version("apache-tvm-ffi"),
        tvm=_installed_version("apache-tvm"),
        imported_tvm=getattr(sys.modules.get("tvm"), "__version__", None),
    )


def find_installed_libraries(version: str) -> Path | None:
    """The folder with the libraries of an installed apache-tvm of this version; tvm itself is not imported."""
    if _installed_version("apache-tvm") != version:
        return None
    spec = importlib.util.find_spec("tvm")
    return Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge_variants(
    manifest: Manifest, host: Host, software: Software, device: Device | None = None
) -> tuple[Verdict, ...]:
    """A verdict for each variant: those that run first, the fastest to be expected first of all."""
    judged = [(judge_variant(variant, host, software, device), variant) for variant in manifest.variants]
    judged.sort(key=lambda pair: _rank(*pair), reverse=True)
    return tuple(verdict for verdict, _ in judged)


def fitting_variants(
    manifest: Manifest, host: Host, software: Software, name: str | None = None, device: Device | None = None
) -> tuple[VariantEntry, ...]:
    """The variants that run on the host, the best first; or the named one. NoVariantError with the reasons for none."""
    variants = {variant.name: variant for variant in manifest.variants}
    if name is not None and name not in variants:
        raise NoVariantError(f"the bundle has no variant {name!r}", hint=f"it has: {', '.join(variants)}")
    verdicts = [v for v in judge_variants(manifest, host, software, device) if name in (None, v.variant)]
    fitting = tuple(variants[verdict.variant] for verdict in verdicts if verdict.level != "unsupported")
    if fitting:
        return fitting
    reasons = {verdict.variant: verdict.reason for verdict in verdicts}
    listed = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())
    what = f"variant {name} does not run on this machine" if name else "no variant of the bundle runs on this machine"
    raise NoVariantError(
        f"{what} ({host.machine}, {host.cpu_model}): {listed}",
        reasons=reasons,
        hint="change what the reasons name, or build a variant for this machine: tvmbridge build --target native",
    )


def choose_variant(manifest: Manifest, host: Host, software: Software, name: str | None = None) -> VariantEntry:
    """The best variant for the host, or the named one if it runs there; raises NoVariantError with the reasons."""
    return fitting_variants(manifest, host, software, name)[0]


def judge_variant(variant: VariantEntry, host: Host, software: Software, device: Device | None = None) -> Verdict:
    """How one variant fits the host. device: where it is to run; None: where it can, which is GPU 0 for CUDA."""
    if device is not None and (variant.kind == "cuda") != (device.kind == "cuda"):
        runs = "a CUDA GPU" if variant.kind == "cuda" else "the CPU"
        return Verdict(variant.name, "unsupported", f"runs on {runs}; the device asked for is {device}")
    missing = _find_missing(variant, host) or _find_missing_software(variant, software)
    if missing:
        return Verdict(variant.name, "unsupported", missing)
    if variant.kind == "cuda":
        level, reason = _judge_gpu(variant, host, 0 if device is None else device.number)
        unloadable = software.unloadable.get(variant.name)
        if level != "unsupported" and unloadable is not None:
            level, reason = "unsupported", unloadable
    else:
        level, reason = _judge_cpu(variant, host)
    return Verdict(variant.name, level, reason)


def _find_missing(variant: VariantEntry, host: Host) -> str | None:
    needs = variant.requires
    if needs.machine != host.machine:
        return f"is for {needs.machine}; this machine is {host.machine}"
    lacking = sorted(set(needs.cpu_features) - host.cpu_features)
    if lacking:
        return f"this CPU lacks {', '.join(lacking)}"
    if needs.glibc is not None and host.glibc is None:
        return f"needs glibc {needs.glibc}; this system has another C library"
    if needs.glibc is not None and _numbers(needs.glibc) > _numbers(host.glibc or ""):
        return f"needs glibc {needs.glibc}; this system has {host.glibc}"
    return None


def _find_missing_software(variant: VariantEntry, software: Software) -> str | None:
    if software.tvm_ffi is None:
        return f"apache-tvm-ffi is not installed: pip install apache-tvm-ffi=={variant.tvm_ffi}"
    if _numbers(software.tvm_ffi)[:3] != _numbers(variant.tvm_ffi)[:3]:
        return (
            f"needs apache-tvm-ffi {variant.tvm_ffi}; {software.tvm_ffi} is installed: "
            f"pip install apache-tvm-ffi=={variant.tvm_ffi}"
        )
    if software.imported_tvm not in (None, variant.tvm):
        return (
            f"needs TVM {variant.tvm}; this process has imported tvm {software.imported_tvm}: load in another process"
        )
    if not variant.runtime_libraries and software.tvm != variant.tvm:
        found = f"{software.tvm} is installed" if software.tvm else "none is installed"
        return (
            f"carries no TVM runtime and needs apache-tvm {variant.tvm}; {found}: pip install apache-tvm=={variant.tvm}"
        )
    return None


def _judge_cpu(variant: VariantEntry, host: Host) -> tuple[Level, str]:
    used, offered = _vector_bits(frozenset(variant.requires.cpu_features)), _vector_bits(host.cpu_features)
    if used < offered:
        return "rebuild advised", f"uses vectors of {used} bits; this CPU has {offered}"
    if variant.cores < host.cores:
        return "supported", f"its loops are split for {variant.cores} cores; this machine offers {host.cores}"
    return "optimal", f"vectors of {used} bits, {min(variant.cores, host.cores)} cores"


def _judge_gpu(variant: VariantEntry, host: Host, index: int) -> tuple[Level, str]:
    """Of one GPU. PTX of the newest architecture runs on all newer ones (CUDA C++ Programming Guide, "PTX
    Compatibility")."""
    if not host.gpus:
        return "unsupported", f"needs a CUDA GPU: {host.no_gpu_because or 'there is none'}"
    if index >= len(host.gpus):
        listed = ", ".join(f"cuda:{place} {gpu.name}" for place, gpu in enumerate(host.gpus))
        return "unsupported", f"there is no cuda:{index} on this machine; it has {listed}"
    gpu = host.gpus[index]
    needed = variant.requires.architectures or variant.architectures
    if gpu.architecture in needed:
        return "optimal", f"holds code for {gpu.architecture} ({gpu.name})"
    offered = {name: number for name in needed if (number := _architecture_number(name)) is not None}
    here = _architecture_number(gpu.architecture)
    listed = ", ".join(needed) or "no GPU"
    if here is not None and any(gpu.runs(name) for name in offered):
        return "supported", f"holds code for {listed}, which {gpu.architecture} runs"
    if here is not None and offered and max(offered.values()) < here:
        return "rebuild advised", f"{gpu.architecture} is newer than {listed}: the driver compiles PTX at load"
    return "unsupported", f"holds code for {listed}; this GPU is {gpu.architecture}"


def _architecture_number(name: str) -> int | None:
    """90 for "sm_90"; None for the likes of "sm_90a", whose code runs on that architecture alone."""
    match = re.fullmatch(r"sm_([0-9]{2,4})", name)
    return int(match[1]) if match else None


def _rank(verdict: Verdict, variant: VariantEntry) -> tuple[bool, bool, int, int, int, int]:
    level = ("unsupported", "rebuild advised", "supported", "optimal").index(verdict.level)
    features = frozenset(variant.requires.cpu_features)
    gpu = variant.kind == "cuda"
    # Among the CPU variants wider vectors decide before cores do: the level alone would turn that round.
    return level > 0, gpu, level if gpu else 0, _vector_bits(features), level, len(features)


def _vector_bits(features: frozenset[str]) -> int:
    """Width of the float vectors that code with these LLVM features uses."""
    return 512 if "avx512f" in features else 256 if features & {"avx", "avx2"} else 128


def _numbers(version: str) -> tuple[int, ...]:
    """(0, 1, 14) for "0.1.14.post1"; compares releases."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
