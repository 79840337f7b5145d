"""Emulation: how it is seen, and that what was measured under it never stands for real hardware."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_bundle import make_variant, write
from tests.test_tuning_log import trials
from tvmbridge import emulation
from tvmbridge.bundle import open_bundle
from tvmbridge.cli.bench_bundle import latency_columns
from tvmbridge.cli.output import show_latency
from tvmbridge.emulation import elf_machine, is_emulated, names_emulator
from tvmbridge.errors import LogError
from tvmbridge.host import Host
from tvmbridge.targets import RpcMeasure, Target, parse_preset, parse_targets
from tvmbridge.tuning.log import LogRecords, TrialRecord, parse_log, read_log, render_log
from tvmbridge.tuning.prune import prune_records
from tvmbridge.tuning.record import EMULATED, parse_record, render_record
from tvmbridge.verify import latency

GOLDEN = Path(__file__).parent / "golden"
X86, ARM64, ARM32 = (2, 62), (2, 183), (1, 40)
REAL, UNDER_QEMU = "arm cores=4", f"arm cores=4{EMULATED}"


def elf(kind: tuple[int, int], little: bool = True) -> bytes:
    return (
        b"\x7fELF"
        + bytes([kind[0], 1 if little else 2])
        + bytes(10)
        + struct.pack("<HH" if little else ">HH", 3, kind[1])
    )


@given(st.sampled_from([X86, ARM64, ARM32]), st.booleans(), st.binary(max_size=8))
def test_the_machine_of_a_program_is_read_from_its_first_bytes(kind, little, rest):
    assert elf_machine(elf(kind, little) + rest) == kind


@given(
    st.binary(max_size=19) | st.binary(min_size=20, max_size=40).filter(lambda data: not data.startswith(b"\x7fELF"))
)
def test_what_is_no_program_has_no_machine(data):
    assert elf_machine(data) is None


@pytest.mark.parametrize(
    ("running", "own", "cpuinfo", "expected"),
    [
        (elf(X86), elf(X86), b"model name\t: Some CPU\n", False),
        (elf(ARM64), elf(ARM64), b"CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", False),
        (elf(X86), elf(ARM64), b"model name\t: Some CPU\n", True),
        (elf(X86), elf(ARM32), b"", True),
        (b"", elf(ARM64), b"", False),  # no /proc: nothing is known
        (elf(X86), elf(X86), b"model name\t: QEMU TCG CPU version 2.5+\n", True),
        (elf(ARM64), elf(ARM64), b"CPU implementer\t: 0x00\nCPU part\t: 0x051\n", True),
    ],
)
def test_emulation_is_seen_in_who_really_runs_and_in_what_the_cpu_calls_itself(
    running, own, cpuinfo, expected, monkeypatch
):
    files = {"/proc/thread-self/exe": running, "/proc/cpuinfo": cpuinfo}
    monkeypatch.setattr(emulation, "_read", lambda path, size_bytes: files.get(path, own)[:size_bytes])
    assert is_emulated() is expected


@given(st.text(max_size=200))
def test_any_text_is_a_cpuinfo(text):
    assert names_emulator(text) is False or "QEMU" in text


@st.composite
def records_of_both(draw) -> list[TrialRecord]:
    found = []
    for record in draw(st.lists(trials(), max_size=8)):
        emulated = draw(st.booleans())
        found.append(msgspec.structs.replace(record, target=UNDER_QEMU if emulated else REAL, emulated=emulated))
    return found


@settings(max_examples=60, deadline=None)
@given(records_of_both(), records_of_both())
def test_no_lookup_mixes_emulated_records_with_real_ones(own, also):
    for records in (LogRecords(own, also=also), parse_log(render_log([*own, *also]), "log")):
        for kernel in ("dense-1", "conv-2"):
            for target, emulated in ((REAL, False), (UNDER_QEMU, True)):
                found = [*records.measured(kernel, target), *records.finals(kernel, target), *records.trials_on(target)]
                best = records.best(kernel, target)
                assert all(record.emulated is emulated for record in [*found, *([best] if best else [])])
    kept = prune_records(LogRecords(own), keep=1).kept
    for target in (REAL, UNDER_QEMU):
        for kernel in ("dense-1", "conv-2"):
            assert LogRecords(kept).best(kernel, target) == LogRecords(own).best(kernel, target)


@settings(max_examples=40, deadline=None)
@given(trials(), st.booleans())
def test_an_emulated_record_says_so_in_its_line_and_others_are_as_they_were(record, emulated):
    record = msgspec.structs.replace(record, target=UNDER_QEMU if emulated else REAL, emulated=emulated)
    line = render_record(record)
    assert parse_record(line, "log:2") == record
    assert (b'"emulated":true' in line) is emulated and b'"emulated":false' not in line


@pytest.mark.parametrize(("target", "emulated"), [(REAL, True), (UNDER_QEMU, False)])
def test_a_record_that_contradicts_its_target_is_refused(target, emulated):
    fields = dict.fromkeys(TrialRecord.__struct_fields__[:-2]) | {"target": target, "times_us": (1.0,)}
    with pytest.raises(ValueError, match=f"emulated is {emulated}"):
        TrialRecord(**fields, emulated=emulated)
    line = (
        b'{"kernel":"k","target":"%s","template":"t","template_version":1,"config":{},"times_us":[1],"error":null,'
        % (target.encode())
    )
    line += b'"tvm":"0","seed":0,"when":"2026-11-23T10:00:00Z"%s}' % (b',"emulated":true' if emulated else b"")
    with pytest.raises(LogError, match=f"log:2: .*emulated is {emulated}"):
        parse_record(line, "log:2")


def test_a_log_of_version_1_knows_no_emulation():
    line = render_record(
        TrialRecord("k", UNDER_QEMU, "t", 1, {}, (1.0,), None, "0", 0, "2026-11-23T10:00:00Z", emulated=True)
    )
    with pytest.raises(LogError, match="version 1 has no field `emulated`"):
        parse_record(line, "log:2", version=1)


def test_targets_that_are_measured_under_emulation_have_keys_of_their_own():
    text = """
version: 1
targets:
  board: {kind: arm, cpu: cortex-a72, measure: {rpc: {tracker: "h:1", key: a72}}}
  qemu: {kind: arm, cpu: cortex-a72, measure: {rpc: {tracker: "h:1", key: a72, emulated: true}}}
"""
    board, qemu = parse_targets(text, "targets.yaml")
    assert qemu.measure == RpcMeasure("h:1", "a72", emulated=True)
    assert (board.emulated, qemu.emulated) == (False, True)
    assert qemu.key == board.key + EMULATED


@pytest.mark.parametrize("emulated", [False, True])
def test_native_is_what_this_machine_is(emulated):
    host = Host("aarch64", "ARM Cortex-A72", frozenset({"neon", "fp-armv8"}), 4, "2.36", 0, emulated=emulated)
    declared = "version: 1\ntargets: {it: {preset: native}, arm: {kind: arm, measure: local}, no: {kind: arm}}"
    found = [parse_preset("native", host=host), *parse_targets(declared, "targets.yaml", host=host)]
    assert [target.emulated for target in found] == [emulated, emulated, emulated, False]
    assert all(target.key.endswith(EMULATED) is target.emulated for target in found)


@given(st.sampled_from(["arm", "x86", "arm:cortex-a72"]), st.one_of(st.none(), st.text(max_size=20)))
def test_only_an_emulated_target_s_key_ends_so_whatever_its_hardware_is_called(preset, hardware):
    target: Target = msgspec.structs.replace(parse_preset(preset), hardware=hardware)
    assert not target.key.endswith(EMULATED)
    assert msgspec.structs.replace(target, emulated=True).key.endswith(EMULATED)


def test_a_bundle_says_which_variants_were_measured_under_emulation(tmp_path):
    real, emulated = make_variant(tmp_path, "native"), make_variant(tmp_path, "arm", latency_us=7.5, emulated=True)
    with open_bundle(write(tmp_path / "m.tvmb", real, emulated)) as bundle:
        assert {variant.name: variant.emulated for variant in bundle.manifest.variants} == {
            "native": False,
            "arm": True,
        }


def test_the_frozen_log_with_emulated_records_is_read_with_all_it_says():
    log = read_log(GOLDEN / "log-v2-emulated.tune.jsonl")
    real, emulated, failed = log
    assert [record.emulated for record in log] == [False, True, True]
    assert emulated.target == real.target + EMULATED == failed.target
    assert log.best(real.kernel, real.target) == real and log.best(real.kernel, emulated.target) == emulated
    assert log.measured(real.kernel, emulated.target) == (emulated, failed)


def test_the_frozen_bundle_with_an_emulated_variant_is_read_today():
    with open_bundle(GOLDEN / "bundle-v2-emulated.tvmb") as bundle:
        bundle.check_members()
        said = {each.name: (each.emulated, each.latency_us) for each in bundle.manifest.variants}
    assert said == {"native": (False, 12.5), "arm": (True, 90250.0)}


@pytest.mark.parametrize("version", [1, 2])
def test_a_bundle_from_before_is_of_real_machines(version):
    with open_bundle(GOLDEN / f"bundle-v{version}.tvmb") as bundle:
        assert [variant.emulated for variant in bundle.manifest.variants] == [False] * len(bundle.manifest.variants)


def test_a_latency_under_emulation_says_so_wherever_it_is_shown(monkeypatch):
    monkeypatch.setattr(latency, "is_emulated", lambda: True)
    measured = latency.measure_latency(lambda: None, lambda: None, seconds=0.1)
    assert measured.emulated and measured.ratio is not None
    assert show_latency(1234.0, True) == "1.234 ms emulated" and show_latency(None, True) == "–"
    assert latency_columns("arm", 2, measured, "ONNX Runtime")[1][2].endswith(" emulated")
