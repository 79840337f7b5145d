"""Targets: what a targets.yaml and the presets mean, `native`, and what can be measured here."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.errors import TargetError
from tvmbridge.host import _ARM_NEEDS, Gpu, Host, parse_cpuinfo
from tvmbridge.targets import (
    RpcMeasure,
    Target,
    load_targets,
    parse_preset,
    parse_targets,
    why_not_local,
)
from tvmbridge.targets.llvm import llvm_cpus, usable_features
from tvmbridge.targets.presets import CUDA_ARCHITECTURES, native_cpu
from tvmbridge.tuning.budget import Budget

ROOT = Path(__file__).resolve().parents[1]
V2 = "sse sse2 pni ssse3 sse4_1 sse4_2 popcnt cx16"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


def x86_host(flags: str, **facts: object) -> Host:
    return host_of("x86_64", parse_cpuinfo(f"flags : {flags}", "x86_64")[1], **facts)


def host_of(machine: str, features: frozenset[str], **facts: object) -> Host:
    host = Host(machine, "Some CPU", features, cores=6, glibc="2.36", memory_bytes=2**34)
    return Host(**{**host.__dict__, **facts})


V4_HOST = x86_host(f"{V4} avx512_bf16 avx512_vnni")


def declare(entry: str, host: Host = V4_HOST) -> Target:
    return parse_targets(f"version: 1\ntargets: {{it: {entry}}}", "targets.yaml", host=host)[0]


# What a file means


def test_the_repository_declares_a_native_an_arm_and_a_cuda_target():
    native, edge, gpu = load_targets(ROOT / "targets.yaml", host=V4_HOST)
    assert (native.name, native.measure, native.budget) == ("native", "local", Budget(minutes=1.5))
    assert (edge.triple, edge.cpu, edge.cores, edge.measure) == ("aarch64-linux-gnu", "cortex-a72", 4, "none")
    assert (gpu.architectures, gpu.cpu, gpu.machine) == (("sm_80", "sm_90"), "x86-64-v3", "x86_64")


def test_a_declared_preset_is_the_preset_under_another_name():
    for preset in ("native", "x86", "x86:haswell", "x86-64-v4", "arm", "arm:neoverse-n1", "cuda:sm_90,sm_80"):
        declared = declare(f'{{preset: "{preset}"}}')
        assert declared == msgspec.structs.replace(parse_preset(preset, host=V4_HOST), name="it")


def test_native_is_measured_here_on_the_cores_of_this_machine():
    native = declare("{preset: native}")
    assert (native.cores, native.measure, native.hardware) == (6, "local", "Some CPU")


def test_an_explicit_x86_target_is_not_measured_unless_asked_for():
    assert declare("{kind: x86}").hardware is None
    measured = declare("{kind: x86, measure: local}")
    assert (measured.measure, measured.hardware) == ("local", "Some CPU")


def test_a_target_measured_over_rpc_is_keyed_by_its_device():
    target = declare('{kind: arm, measure: {rpc: {tracker: "[::1]:9190", key: rpi4}}}')
    assert (target.measure, target.hardware) == (RpcMeasure(tracker="[::1]:9190", key="rpi4"), "rpi4")


def test_a_cuda_target_measured_here_is_keyed_by_its_gpu():
    host = x86_host(V4, gpus=(Gpu("NVIDIA H100", "sm_90"),))
    assert declare("{kind: cuda, architectures: [sm_90], measure: local}", host).hardware == "NVIDIA H100"


def test_a_cuda_host_may_be_an_arm_cpu():
    target = declare("{kind: cuda, architectures: [sm_87], host: 'arm:cortex-a78ae'}")
    assert (target.kind, target.machine, target.cpu) == ("cuda", "aarch64", "cortex-a78ae")


def test_scalars_stay_the_text_that_was_written():
    targets = parse_targets("version: 1\ntargets: {no: {kind: x86}, 007: {kind: arm}}", "t")
    assert [target.name for target in targets] == ["no", "007"]


def test_the_key_holds_what_changes_a_result_and_not_the_name_or_budget():
    target = declare("{kind: x86, cpu: haswell, features: [-fma]}")
    assert target.key == "kind=x86 triple=x86_64-linux-gnu cpu=haswell features=-fma cores=4"
    renamed = msgspec.structs.replace(target, name="other", budget=Budget(trials=1))
    assert renamed.key == target.key
    assert msgspec.structs.replace(target, hardware="a\nb").key.count("\n") == 0


def test_the_keys_of_different_targets_differ():
    presets = (
        "x86",
        "x86-64-v4",
        "arm",
        "arm:cortex-a72",
        "cuda:sm_80",
        "cuda:sm_80,sm_90",
        "cuda:sm_80,float16",
        "native",
    )
    assert len({parse_preset(preset, host=V4_HOST).key for preset in presets}) == len(presets)


def test_a_cuda_target_may_compute_in_float16_and_its_key_says_so():
    plain = declare("{kind: cuda, architectures: [sm_80]}")
    half = declare("{kind: cuda, architectures: [sm_80], precision: float16}")
    assert (plain.precision, half.precision) == ("float32", "float16")
    assert "precision" not in plain.key and half.key == f"{plain.key} precision=float16"
    assert declare("{kind: cuda, architectures: [sm_80], precision: float32}") == plain
    assert (
        parse_preset("cuda:sm_80,float16").key == declare("{preset: 'cuda:sm_80', precision: float16}").key == half.key
    )


def test_a_cuda_target_may_launch_graphs_which_its_tuning_records_do_not_depend_on():
    plain = declare("{kind: cuda, architectures: [sm_80]}")
    graphs = declare("{kind: cuda, architectures: [sm_80], cuda_graphs: true}")
    assert (plain.cuda_graphs, graphs.cuda_graphs, graphs.key) == (False, True, plain.key)
    both = parse_preset("cuda:sm_80,float16,graphs")
    assert (both.precision, both.cuda_graphs, both.name) == ("float16", True, "cuda-sm_80-float16-graphs")
    assert declare("{preset: 'cuda:sm_80,graphs'}") == declare("{preset: 'cuda:sm_80', cuda_graphs: true}") == graphs
    assert declare("{preset: 'cuda:sm_80,graphs', cuda_graphs: false}") == plain


@given(
    cpu=st.sampled_from(llvm_cpus("x86_64")),
    architectures=st.sets(st.sampled_from(CUDA_ARCHITECTURES), max_size=4),
    cores=st.integers(1, 64),
    precision=st.sampled_from(["float32", "float16"]),
    graphs=st.booleans(),
    measure=st.sampled_from(["local", "none", RpcMeasure(tracker="a:1", key="k")]),
    budget=st.sampled_from([None, Budget(trials=3), Budget(minutes=0.5)]),
)
def test_a_target_survives_json(cpu, architectures, cores, precision, graphs, measure, budget):
    target = Target(
        "t",
        "x86",
        "x86_64-linux-gnu",
        cpu,
        ("+avx",),
        cores,
        tuple(sorted(architectures)),
        precision,
        graphs,
        measure,
        budget,
        None,
    )
    assert msgspec.json.decode(msgspec.json.encode(target), type=Target) == target


# Features and vectors


@pytest.mark.parametrize(
    ("preset", "bits", "registers"),
    [
        ("x86-64-v2", 128, 16),
        ("x86-64-v3", 256, 16),
        ("x86-64-v4", 512, 32),
        ("arm", 128, 32),
        ("arm:neoverse-v1", 128, 32),
    ],
)
def test_vector_registers_follow_from_the_cpu(preset: str, bits: int, registers: int):
    target = parse_preset(preset)
    assert (target.vector_bits, target.vector_registers) == (bits, registers)


PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON_3 = f"{PI_5} jscvt fcma sha3 sha512 asimdfhm uscat ilrcpc flagm ssbs sve svei8mm svebf16 i8mm bf16"
M1 = f"{PI_5} jscvt fcma sha3 sha512 asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg dcpodp flagm2 frint"


@pytest.mark.parametrize(
    ("preset", "shown", "used"),
    [
        ("arm:cortex-a53", "fp asimd evtstrm crc32 cpuid", set()),
        ("arm:cortex-a72", "fp asimd evtstrm crc32 cpuid", set()),
        ("arm:cortex-a76", PI_5, {"dotprod", "fullfp16"}),
        ("arm:neoverse-n1", PI_5, {"dotprod", "fullfp16"}),
        ("arm:neoverse-v1", GRAVITON_3, {"dotprod", "fullfp16", "i8mm", "bf16"}),
        ("arm:apple-m1", M1, {"dotprod", "fullfp16"}),
    ],
)
def test_code_for_a_known_board_uses_what_linux_shows_on_it(preset: str, shown: str, used: set[str]):
    target = parse_preset(preset)
    _, features = parse_cpuinfo(f"Features : {shown}", "aarch64")
    assert target.cpu_features <= features
    assert target.cpu_features & {"dotprod", "fullfp16", "i8mm", "bf16"} == used


def test_features_of_an_arm_board_are_declared_by_name():
    target = declare("{kind: arm, features: [+dotprod, +fullfp16, +i8mm]}")
    assert target.cpu_features == {"fp-armv8", "neon", "dotprod", "fullfp16", "i8mm"}


def test_a_name_that_clang_has_for_a_cpu_is_taken_too():
    assert parse_preset("arm:apple-m1").cpu == declare("{kind: arm, cpu: apple-m1}").cpu == "apple-a14"
    with pytest.raises(TargetError) as caught:
        parse_preset("apple-m1")
    assert caught.value.hint == "arm:apple-m1"


def test_taking_a_feature_away_takes_what_needs_it():
    target = declare("{kind: x86, cpu: x86-64-v4, features: [-avx512f]}")
    assert "avx2" in target.cpu_features
    assert not any(name.startswith("avx512") for name in target.cpu_features)
    assert target.vector_bits == 256


def test_adding_a_feature_adds_what_it_needs():
    assert {"sve", "fullfp16"} <= declare("{kind: arm, features: [+sve2]}").cpu_features


def test_features_that_only_tune_or_encrypt_are_no_needs_of_the_code():
    target = declare("{kind: arm, cpu: cortex-a72, features: [+aes]}")
    assert target.cpu_features == {"fp-armv8", "neon"}


# native


def test_native_takes_the_highest_level_that_is_fully_there():
    assert native_cpu(x86_host(V2)).cpu == "x86-64-v2"
    assert native_cpu(x86_host(V3)).cpu == "x86-64-v3"
    assert native_cpu(x86_host(V4)).cpu == "x86-64-v4"
    assert native_cpu(x86_host(V4.replace(" fma", ""))).cpu == "x86-64-v2"
    assert native_cpu(x86_host("")).cpu == "x86-64"


def test_native_adds_the_features_that_the_machine_shows():
    assert native_cpu(V4_HOST).features == ("+avx512bf16", "+avx512vnni")
    assert native_cpu(x86_host(f"{V3} avx_vnni")).features == ("+avxvnni",)


def test_native_leaves_out_a_feature_whose_basis_is_hidden():
    assert native_cpu(x86_host(f"{V3} avx512_bf16")).features == ()


def test_native_on_arm_is_generic_with_the_features_shown():
    _, features = parse_cpuinfo("Features : fp asimd asimddp atomics fphp asimdhp aes", "aarch64")
    cpu = native_cpu(host_of("aarch64", features))
    assert (cpu.cpu, cpu.features) == ("generic", ("+dotprod", "+fullfp16", "+lse"))


@given(
    st.sets(st.sampled_from([*V4.split(), "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "gfni"]))
)
def test_native_x86_code_never_needs_more_than_the_host_shows(flags: set[str]):
    host = x86_host(" ".join(sorted(flags | {"sse", "sse2"})))
    cpu = native_cpu(host)
    assert usable_features(cpu.machine, cpu.cpu, cpu.features) <= host.cpu_features


@given(st.sets(st.sampled_from(sorted({flag for needs in _ARM_NEEDS.values() for flag in needs}))))
def test_native_arm_code_never_needs_more_than_the_host_shows(flags: set[str]):
    _, features = parse_cpuinfo(f"Features : fp asimd {' '.join(flags)}", "aarch64")
    cpu = native_cpu(host_of("aarch64", features))
    assert usable_features(cpu.machine, cpu.cpu, cpu.features) <= features


def test_there_is_no_native_target_on_other_machines():
    with pytest.raises(TargetError, match="riscv64"):
        parse_preset("native", host=host_of("riscv64", frozenset()))


# Measuring here


def test_the_native_target_can_be_measured_here():
    assert why_not_local(parse_preset("native", host=V4_HOST), V4_HOST) is None


def test_a_target_of_another_machine_cannot_be_measured_here():
    assert "x86_64" in (why_not_local(parse_preset("arm"), V4_HOST) or "")


def test_a_cpu_with_more_features_cannot_be_measured_here():
    assert "avx512f" in (why_not_local(parse_preset("x86-64-v4"), x86_host(V3)) or "")


def test_a_cuda_target_is_measured_on_a_gpu_that_runs_its_code():
    target = parse_preset("cuda:sm_80")
    assert why_not_local(target, x86_host(V4)) == "no CUDA GPU was found on this machine"
    assert why_not_local(target, x86_host(V4, gpus=(Gpu("A40", "sm_86"),))) is None
    assert "sm_90" in (why_not_local(target, x86_host(V4, gpus=(Gpu("H100", "sm_90"),))) or "")


# Presets


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("arm:cortex-a72", "arm-cortex-a72"),
        ("cuda:sm_80, sm_90", "cuda-sm_80-sm_90"),
        ("cuda:sm_80, float16", "cuda-sm_80-float16"),
        ("x86-64-v3", "x86-64-v3"),
    ],
)
def test_a_preset_names_its_target(preset: str, name: str):
    assert parse_preset(preset).name == name


def test_plain_presets_are_the_common_baselines():
    assert parse_preset("x86").cpu == "x86-64-v3"
    assert (parse_preset("arm").cpu, parse_preset("arm").features) == ("generic", ())
    assert parse_preset("cuda:sm_90").cpu == "x86-64-v3"


def test_architectures_are_sorted_by_number():
    assert parse_preset("cuda:sm_100,sm_90").architectures == ("sm_90", "sm_100")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("", "no such preset"),
        ("navite", "close matches: native"),
        ("cortex-a72", "arm:cortex-a72"),
        ("arm:cortex-a720x", "LLVM knows no aarch64 cpu 'cortex-a720x'; close matches: cortex-a720"),
        ("x86:cortex-a72", "kind: arm"),
        ("x86:", "LLVM knows no x86_64 cpu ''"),
        ("x86:pentium4", "LLVM knows no x86_64 cpu 'pentium4'"),
        ("cuda", "for example cuda:sm_80,sm_90"),
        ("cuda:sm_81", "one of: sm_75, sm_80"),
        ("cuda:sm_80,sm_80", "named twice"),
        ("cuda:float16", "for example cuda:sm_80,sm_90"),
        ("cuda:float16,sm_80", "no such GPU architecture 'float16'"),
        ("cuda:sm_80,", "no such GPU architecture ''"),
    ],
)
def test_a_wrong_preset_is_refused_with_what_is_allowed(preset: str, expected: str):
    with pytest.raises(TargetError) as caught:
        parse_preset(preset, host=V4_HOST)
    assert expected in str(caught.value)


@given(
    st.text(max_size=40) | st.sampled_from(["x86:", "arm:", "cuda:"]).flatmap(lambda kind: st.text().map(kind.__add__))
)
def test_any_text_is_a_preset_or_a_target_error(text: str):
    try:
        assert parse_preset(text, host=V4_HOST).cores
    except TargetError as exc:
        assert len(exc.message) < 400
