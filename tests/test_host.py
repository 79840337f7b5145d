"""What this machine is: parsing of the kernel's texts, core quotas, GPUs and tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.host import (
    detect_host,
    find_tools,
    last_level_cache_bytes,
    parse_cpu_max,
    parse_cpuinfo,
    read_cpu_quota,
    run_command,
)

ZEN4 = """\
processor\t: 0
model name\t: AMD EPYC  9654
flags\t: aes fpu sse sse2 pni ssse3 sse4_1 sse4_2 abm bmi1 bmi2 avx avx2 fma f16c movbe popcnt cx16 avx512f avx512_bf16
processor\t: 1
model name\t: AMD EPYC  9654
flags\t: aes fpu sse sse2 pni ssse3 sse4_1 sse4_2 abm bmi1 bmi2 avx avx2 fma f16c movbe popcnt cx16 avx512f avx512_bf16
"""
RASPBERRY_PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
"""
BIG_LITTLE = """\
processor\t: 0
Features\t: fp asimd atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05
processor\t: 1
Features\t: fp asimd atomics fphp asimdhp asimddp sve
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def test_x86_flags_become_llvm_names():
    model, features = parse_cpuinfo(ZEN4, "x86_64")
    assert model == "AMD EPYC 9654"
    assert {"sse3", "sse4.1", "sse4.2", "lzcnt", "bmi", "avx512f", "avx512bf16"} <= features
    assert not features & {"pni", "abm", "avx512_bf16", "fpu", "aes"}


def test_amx_and_vnni_flags_become_llvm_names():
    _, features = parse_cpuinfo("flags : amx_tile amx_int8 amx_bf16 avx_vnni avx512_vnni avx512_vpopcntdq", "x86_64")
    assert features == {"amx-tile", "amx-int8", "amx-bf16", "avxvnni", "avx512vnni", "avx512vpopcntdq"}


def test_an_arm_core_is_named_from_its_part_number():
    model, features = parse_cpuinfo(RASPBERRY_PI_4, "aarch64")
    assert model == "ARM Cortex-A72"
    assert features == {"fp-armv8", "neon"}


def test_cores_that_differ_give_both_names_and_only_the_common_features():
    model, features = parse_cpuinfo(BIG_LITTLE, "aarch64")
    assert model == "ARM Cortex-A55 + Cortex-A76"
    assert features == {"fp-armv8", "neon", "lse", "fullfp16", "dotprod"}


def test_half_precision_needs_both_of_its_flags():
    assert "fullfp16" not in parse_cpuinfo("Features : fp asimd asimdhp", "aarch64")[1]


def test_an_unknown_arm_core_is_named_by_its_numbers():
    text = "CPU implementer : 0x61\nCPU part : 0x023\n"
    assert parse_cpuinfo(text, "aarch64")[0] == "ARM implementer 0x61 part 0x23"


def test_no_cpuinfo_means_no_features():
    assert parse_cpuinfo("", "x86_64") == ("unknown", frozenset())


@given(st.text(max_size=300), st.sampled_from(["x86_64", "aarch64", "riscv64"]))
def test_any_text_can_be_a_cpuinfo(text: str, machine: str):
    model, features = parse_cpuinfo(text, machine)
    assert model
    assert isinstance(features, frozenset)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 1.5),
        ("-1 100000", None),
        ("", None),
        ("5 0", None),
        ("nonsense", None),
    ],
)
def test_a_cgroup_quota_is_read_as_cores(text: str, cores: float | None):
    assert parse_cpu_max(text) == cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_quota_of_the_parent_groups_counts(tmp_path: Path):
    write(tmp_path / "proc/self/cgroup", "0::/pod/container\n")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "200000 100000\n")
    write(tmp_path / "sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    assert read_cpu_quota(tmp_path) == 2.0


def test_the_quota_of_a_version_1_cgroup_is_read(tmp_path: Path):
    write(tmp_path / "proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "300000\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    assert read_cpu_quota(tmp_path) == 3.0


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path):
    assert read_cpu_quota(tmp_path) is None


def test_this_host_is_described_without_looking_for_gpus():
    host = detect_host()
    assert host.machine
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.memory_bytes > 0
    assert host.gpus == ()


def test_tools_are_reported_found_or_with_what_to_install():
    versions = {"/bin/cc": "cc (Debian 12.2.0-14) 12.2.0\n", "/cuda/bin/nvcc": "Built 2025\nrelease 13.0, V13.0.88\n"}
    found = {"cc": "/bin/cc", "/cuda/bin/nvcc": "/cuda/bin/nvcc"}
    tools = find_tools(
        "x86_64", which=found.get, run=lambda command: versions.get(command[0]), environ={"CUDA_HOME": "/cuda"}
    )
    by_name = {tool.name: tool for tool in tools}
    assert list(by_name) == ["cc", "aarch64-linux-gnu-gcc", "ld.lld", "zig", "nvcc"]
    assert by_name["cc"].path == Path("/bin/cc")
    assert by_name["cc"].version == "12.2.0"
    assert by_name["nvcc"].version == "13.0.88"
    assert by_name["aarch64-linux-gnu-gcc"].path is None
    assert by_name["aarch64-linux-gnu-gcc"].install_hint == "apt install gcc-aarch64-linux-gnu"


def test_an_arm_machine_needs_the_x86_cross_compiler():
    tools = find_tools("aarch64", which=lambda name: None, run=lambda command: None, environ={})
    cross = tools[1]
    assert (cross.name, cross.install_hint) == ("x86_64-linux-gnu-gcc", "apt install gcc-x86-64-linux-gnu")


def test_a_command_that_is_missing_or_fails_says_nothing():
    assert run_command(["/nonexistent/program"]) is None
    assert run_command(["false"]) is None
    assert run_command(["echo", "1.2.3"]) == "1.2.3\n"


def test_the_last_level_cache_is_the_largest_that_the_first_cpu_sees(tmp_path: Path):
    for index, size in enumerate(("32K", "32K", "1024K", "32768K", "unknown")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 32 << 20
    assert last_level_cache_bytes(tmp_path / "nothing") == 0
