"""What this machine is: instruction sets, usable cores, C library, GPUs, and the tools a build needs.

`detect_host` costs a few milliseconds and starts no process; asking for GPUs or tools does, so those are functions of
their own. Everything that reads a format is a pure function of its text.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tvmbridge.emulation import is_emulated
from tvmbridge.gpus import Gpu, Gpus, find_gpus

COMMAND_TIMEOUT_S = 10.0
NVCC_PACKAGES = "tvmbridge[cuda]"  # the extra of pyproject.toml that brings nvcc

# Linux's name in /proc/cpuinfo → LLVM's, where LLVM's is not Linux's with the underscore left out.
_X86_NAMES = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "bmi1": "bmi",
    "abm": "lzcnt",
}
_X86_SAME_NAMES = """
    sse sse2 ssse3 sse4a avx avx2 fma fma4 xop f16c bmi2 tbm popcnt movbe cx16 gfni cmpccxadd
    avx512f avx512cd avx512dq avx512bw avx512vl avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg
    avx512_vpopcntdq avx512_bf16 avx512_fp16 avx_vnni avx_vnni_int8 avx_vnni_int16 avx_ifma avx_ne_convert"""
# Every name of the value must be in /proc/cpuinfo for LLVM's feature to be usable.
_ARM_NEEDS = {
    "fp-armv8": ("fp",),
    "neon": ("asimd",),
    "lse": ("atomics",),
    "lse2": ("uscat",),
    "lse128": ("lse128",),
    "rdm": ("asimdrdm",),
    "fullfp16": ("fphp", "asimdhp"),
    "fp16fml": ("asimdfhm",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "complxnum": ("fcma",),
    "jsconv": ("jscvt",),
    "rcpc": ("lrcpc",),
    "rcpc-immo": ("ilrcpc",),
    "rcpc3": ("lrcpc3",),
    "fptoint": ("frint",),
    "flagm": ("flagm",),
    "altnzcv": ("flagm2",),
    "sha3": ("sha3", "sha512"),
    "mops": ("mops",),
    "cssc": ("cssc",),
    "hbc": ("hbc",),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "sve2p1": ("sve2p1",),
    "sve-bitperm": ("svebitperm",),
    "sve-b16b16": ("sveb16b16",),
    "faminmax": ("faminmax",),
    "lut": ("lut",),
    "fp8": ("f8cvt",),
    "fp8fma": ("f8fma",),
    "fp8dot2": ("f8dp2",),
    "fp8dot4": ("f8dp4",),
}
# ARM prints numbers instead of a name; (implementer, part) as in the MIDR register.
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD84): "Neoverse-V3",
    (0x46, 0x001): "A64FX",
    (0xC0, 0xAC3): "Ampere-1",
}


@dataclass(frozen=True)
class Host:
    """What code may use on this machine.

    machine: "x86_64", "aarch64", or another name as the kernel gives it.
    cpu_model: for people and for the tuning log; "unknown" where the kernel does not say.
    cpu_features: LLVM's names; what a hypervisor hides or Linux does not name counts as absent.
    cores: usable ones, after CPU affinity and the cgroup's quota; at least 1.
    glibc: "2.36"; None with another C library.
    memory_bytes: physical memory; 0 where unknown.
    emulated: whether this process's instructions are interpreted: its times are then not those of such a machine.
    gpus, cuda, no_gpu_because: the CUDA devices, the newest CUDA that their driver runs ("13.0"), and why there are no
    devices; empty and None unless `detect_host(gpus=True)` looked.
    """

    machine: str
    cpu_model: str
    cpu_features: frozenset[str]
    cores: int
    glibc: str | None
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    cuda: str | None = None
    no_gpu_because: str | None = None
    emulated: bool = False


@dataclass(frozen=True)
class Tool:
    """One program that some build needs. path, version: None where not found or not said."""

    name: str
    path: Path | None
    version: str | None
    needed_for: str
    install_hint: str


def detect_host(*, gpus: bool = False) -> Host:
    """This machine. gpus=True also asks the GPUs' driver, which takes some tenths of a second."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    cpu_model, cpu_features = parse_cpuinfo(_read_text(Path("/proc/cpuinfo")), machine)
    found = find_gpus(run_command) if gpus else Gpus()
    return Host(
        machine=machine,
        cpu_model=cpu_model,
        cpu_features=cpu_features,
        cores=_usable_cores(),
        glibc=_glibc_version(),
        memory_bytes=_memory_bytes(),
        gpus=found.devices,
        cuda=found.cuda,
        no_gpu_because=found.problem,
        emulated=is_emulated(),
    )


def parse_cpuinfo(text: str, machine: str) -> tuple[str, frozenset[str]]:
    """The CPU's name and the LLVM features that every core of a /proc/cpuinfo has."""
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    key = "flags" if machine == "x86_64" else "Features"
    lines = {value for name, value in fields if name == key}
    flags = frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()
    if machine == "x86_64":
        features = {llvm for linux, llvm in _X86_NAMES.items() if linux in flags}
        features |= {flag.replace("_", "") for flag in flags.intersection(_X86_SAME_NAMES.split())}
        features |= {flag.replace("_", "-") for flag in flags if flag.startswith("amx_")}
        if "apx" in flags:
            # The bit stands for these three; ndd, nf, ccmp and zu have a bit that Linux does not show.
            features |= {"egpr", "ppx", "push2pop2"}
    elif machine == "aarch64":
        features = {feature for feature, needs in _ARM_NEEDS.items() if flags.issuperset(needs)}
    else:
        features = set()
    return _cpu_model(fields), frozenset(features)


def _cpu_model(fields: list[tuple[str, str]]) -> str:
    """The name in /proc/cpuinfo, or for ARM the names of its distinct cores: "ARM Cortex-A55 + Cortex-A76"."""
    for name, value in fields:
        if name == "model name" and value:
            return " ".join(value.split())
    implementers = [_number(value) for name, value in fields if name == "CPU implementer"]
    parts = [_number(value) for name, value in fields if name == "CPU part"]
    cores = dict.fromkeys(zip(implementers, parts, strict=False))
    names = [_ARM_PARTS.get(core) or f"implementer {core[0]:#x} part {core[1]:#x}" for core in cores]
    return f"ARM {' + '.join(names)}" if names else "unknown"


def _number(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else 0


def _usable_cores() -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_cpu_quota()
    # Rounded down: a thread beyond the quota makes all of them wait for the next period.
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time this process's cgroups (version 1 or 2) allow; None without a limit."""
    limits = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = mount.joinpath(*parts[:depth])
            if controllers:
                quota, period = _read_text(group / "cpu.cfs_quota_us"), _read_text(group / "cpu.cfs_period_us")
                limits.append(parse_cpu_max(f"{quota.strip()} {period.strip()}"))
            else:
                limits.append(parse_cpu_max(_read_text(group / "cpu.max")))
    return min((limit for limit in limits if limit is not None), default=None)


def parse_cpu_max(text: str) -> float | None:
    """Cores of a cgroup's cpu.max, "QUOTA PERIOD" in microseconds; None for "max …", -1 or no such text."""
    match = re.fullmatch(r"([0-9]+) ([0-9]+)", text.strip())
    return int(match[1]) / int(match[2]) if match and int(match[1]) and int(match[2]) else None


def last_level_cache_bytes(root: Path = Path("/")) -> int:
    """The size of the largest cache that the first CPU sees; 0 where the kernel does not say."""
    sizes = [_read_text(path).strip() for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size")]
    matches = filter(None, (re.fullmatch(r"([0-9]+)([KMG]?)", size) for size in sizes))
    return max((int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] for match in matches), default=0)


def _glibc_version() -> str | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, OSError, ValueError):
        return None
    return version if name == "glibc" else None


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _read_text(path: Path) -> str:
    """The text of a kernel file; empty where this kernel or this sandbox has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def run_command(command: list[str]) -> str | None:
    """Standard output of a command; None where it is missing, fails or takes more than COMMAND_TIMEOUT_S."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def find_tools(
    machine: str | None = None,
    *,
    which: Callable[[str], str | None] = shutil.which,
    run: Callable[[list[str]], str | None] = run_command,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Tool, ...]:
    """The tools that builds on this machine (or on `machine`) need, found or not, with their versions."""
    other = "x86_64" if (machine or platform.machine().lower()) in ("aarch64", "arm64") else "aarch64"
    package = f"gcc-{other.replace('_', '-')}-linux-gnu"
    cross = f"{other}-linux-gnu-gcc"
    cross_need = f"linking {'arm' if other == 'aarch64' else 'x86'} targets (or ld.lld, or zig)"
    wanted = (
        ("cc", which("cc") or which("gcc") or which("clang"), "linking targets of this machine", "apt install gcc"),
        (cross, which(cross), cross_need, f"apt install {package}"),
        ("ld.lld", which("ld.lld"), "linking any CPU target", "apt install lld"),
        ("zig", find_zig(which), "linking any CPU target", "pip install ziglang"),
        (
            "nvcc",
            find_nvcc(which, environ),
            "cuda targets",
            f"pip install {NVCC_PACKAGES}",
        ),
    )
    return tuple(
        Tool(
            name=name,
            path=Path(path) if path else None,
            version=_version(name, run([path, "version" if name == "zig" else "--version"])) if path else None,
            needed_for=needed_for,
            install_hint=hint,
        )
        for name, path, needed_for, hint in wanted
    )


def find_zig(which: Callable[[str], str | None]) -> str | None:
    """zig on PATH, else the program inside the `ziglang` package from PyPI; None where there is neither."""
    if path := which("zig"):
        return path
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.origin:
        return None
    program = Path(spec.origin).parent / "zig"
    return str(program) if program.is_file() else None


def find_nvcc(which: Callable[[str], str | None], environ: Mapping[str, str]) -> str | None:
    """nvcc on PATH, else in the toolkit that CUDA_HOME or CUDA_PATH names, else where its installer puts it.

    Then among this Python's packages, where those that NVIDIA publishes on PyPI share a folder, nvidia/cu13. None where
    there is none.
    """
    folders = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    folders += ["/usr/local/cuda", *_packaged_toolkits()]
    return which("nvcc") or next(filter(None, (which(f"{folder}/bin/nvcc") for folder in folders)), None)


def _packaged_toolkits() -> list[str]:
    """The folders of CUDA toolkits that pip has installed for this Python, the newest first."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec is not None else None
    return sorted((str(path) for place in places or () for path in Path(place).glob("cu[0-9]*")), reverse=True)


def parse_nvcc_version(output: str | None) -> str | None:
    """The version in what `nvcc --version` says, "13.0.88"; None where there is none."""
    match = re.search(r"\bV([0-9]+(?:\.[0-9]+)+)", output or "")
    return match[1] if match else None


def _version(name: str, output: str | None) -> str | None:
    if name == "nvcc":
        return parse_nvcc_version(output)
    match = re.search(r"[0-9]+(\.[0-9]+)+", output or "")
    return match[0] if match else None
