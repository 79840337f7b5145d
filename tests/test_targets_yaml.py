"""targets.yaml: every mistake is refused with file, key path, value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.errors import TargetError
from tvmbridge.host import Host
from tvmbridge.targets import load_targets, parse_targets
from tvmbridge.targets.declared import KEYS
from tvmbridge.targets.llvm import usable_features
from tvmbridge.targets.yaml_text import MAX_CHARACTERS

HOST = Host("x86_64", "Some CPU", usable_features("x86_64", "x86-64-v4", ()), cores=6, glibc="2.36", memory_bytes=2**34)


def message(text: str) -> str:
    with pytest.raises(TargetError) as caught:
        parse_targets(text, "targets.yaml", host=HOST)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "{kind: arm, cpu: cortex-a720x}",
            "targets.yaml: targets.it.cpu: LLVM knows no aarch64 cpu 'cortex-a720x'; close matches: cortex-a720",
        ),
        ("{kind: x86, cpu: native}", "preset: native"),
        ("{kind: x86, cpu: [a]}", "targets.it.cpu: expected text, found a list"),
        ("{kind: x86, mcpu: haswell}", "targets.it: no such key 'mcpu'; close matches: cpu"),
        ("{kind: x86, architectures: [sm_80]}", "no such key 'architectures'"),
        ("{knid: x86}", "no such key 'knid'; close matches: kind"),
        ("{kind: x68}", "targets.it.kind: no such kind 'x68'; close matches: x86"),
        ("{kind: opencl}", "x86, arm or cuda"),
        ("{cores: 2}", "has neither preset nor kind"),
        ("{preset: native, kind: x86}", "has both preset and kind"),
        ("{preset: native, cpu: haswell}", "no such key 'cpu'"),
        ("{preset: 'arm:cortexa72'}", "targets.it.preset: LLVM knows no aarch64 cpu 'cortexa72'"),
        ("{preset: [native]}", "targets.it.preset: expected text, found a list"),
        ("{kind: x86, cores: 0}", "targets.it.cores: expected 1 to 1024, found 0"),
        ("{kind: x86, cores: -1}", "expected 1 to 1024, found -1"),
        ("{kind: x86, cores: four}", "expected a whole number from 1 to 1024, found 'four'"),
        ("{kind: x86, cores: 1.5}", "expected a whole number"),
        ("{kind: x86, cores: [4]}", "expected a whole number from 1 to 1024, found a list"),
        ("{kind: x86, cores: 99999999999999999999}", "expected a whole number"),
        ("{kind: x86, features: +avx2}", "targets.it.features: expected a list, found '+avx2'"),
        ("{kind: x86, features: [avx2]}", "'+avx2' adds it"),
        (
            "{kind: x86, features: [+avx512_vnni]}",
            "LLVM knows no x86_64 feature 'avx512_vnni'; close matches: avx512vnni",
        ),
        ("{kind: x86, features: [+avx2, -avx2]}", "given twice"),
        ("{kind: x86, features: [-sse2]}", "cannot do without sse2"),
        ("{kind: arm, features: [-neon]}", "cannot do without neon"),
        ("{kind: x86, features: [[]]}", "targets.it.features[0]: expected text, found a list"),
        ("{kind: cuda}", "architectures: [sm_80, sm_90]"),
        ("{kind: cuda, architectures: []}", "targets.it.architectures: a cuda target names"),
        ("{kind: cuda, architectures: [sm_70]}", "one of: sm_75, sm_80"),
        ("{kind: cuda, architectures: sm_80}", "expected a list"),
        (
            "{kind: cuda, architectures: [sm_80], host: x86-64-v5}",
            "targets.it.host: no such preset; close matches: x86-64-v",
        ),
        (
            "{kind: cuda, architectures: [sm_80], precision: float}",
            "targets.it.precision: cannot be 'float'; close matches: float32, float16",
        ),
        ("{kind: x86, precision: float16}", "targets.it.precision: only a cuda target has one"),
        ("{kind: arm, precision: float32}", "targets.it.precision: only a cuda target has one"),
        ("{preset: x86-64-v3, precision: float16}", "targets.it.precision: only a cuda target has one"),
        ("{kind: cuda, architectures: [sm_80], cuda_graphs: yes}", "cuda_graphs: expected true or false, found 'yes'"),
        ("{kind: arm, cuda_graphs: true}", "targets.it.cuda_graphs: only a cuda target has them"),
        ("{preset: native, cuda_graphs: false}", "targets.it.cuda_graphs: only a cuda target has them"),
        ("{kind: x86, budget: 5}", "targets.it.budget: expected keys and values, found '5'"),
        ("{kind: x86, budget: {}}", "limits nothing"),
        ("{kind: x86, budget: {minute: 5}}", "close matches: minutes"),
        ("{kind: x86, budget: {minutes: -1}}", "targets.it.budget.minutes: expected a number that is not negative"),
        ("{kind: x86, budget: {minutes: .inf}}", "expected a number"),
        ("{kind: x86, budget: {minutes: nan}}", "expected a number"),
        ("{kind: x86, budget: {trials: 1e3}}", "targets.it.budget.trials: expected a whole number"),
        ("{kind: x86, measure: remote}", "targets.it.measure: cannot be 'remote'"),
        ("{kind: x86, measure: {}}", "local, none, or {rpc:"),
        ("{kind: x86, measure: {rcp: {}}}", "close matches: rpc"),
        ("{kind: x86, measure: {rpc: {tracker: 'h:1'}}}", "targets.it.measure.rpc: no key"),
        ("{kind: x86, measure: {rpc: {tracker: host, key: k}}}", "'host' is not HOST:PORT"),
        ("{kind: x86, measure: {rpc: {tracker: 'host:70000', key: k}}}", "is not HOST:PORT"),
        ("{kind: x86, measure: {rpc: {tracker: 'host:1', key: 'a b'}}}", "'a b' is no RPC key"),
        ("{kind: x86, measure: {rpc: {tracker: 'h:1', key: k, emulated: yes}}}", "emulated: expected true or false"),
        ("native", "targets.it: expected keys and values, found 'native'"),
        ("", "targets.it: expected keys and values, found nothing"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_path(entry: str, expected: str):
    text = message(f"version: 1\ntargets: {{it: {entry}}}")
    assert text.startswith("targets.yaml: targets.it")
    assert expected in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "targets.yaml: is empty"),
        ("# nothing\n", "targets.yaml: is empty"),
        ("- a", "targets.yaml: expected keys and values, found a list"),
        ("version: 1", "declares no targets"),
        ("targets: {a: {kind: x86}}", "no version"),
        ("version: 2\ntargets: {}", "targets.yaml: version: 2 is newer"),
        ("version: one\ntargets: {}", "targets.yaml: version: expected a whole number"),
        ("version: 1\ntargets: {}", "targets.yaml: targets: declares no target"),
        ("version: 1\ntargets:", "targets.yaml: targets: expected keys and values, found nothing"),
        ("version: 1\ntarget: {}", "close matches: targets"),
        ("version: 1\ntargets: {a/b: {kind: x86}}", "'a/b' cannot be the name of a target"),
        ("version: 1\ntargets: {..: {kind: x86}}", "'..' cannot be the name of a target"),
        ("version: 1\ntargets:\n  a: [", "targets.yaml:3: not YAML"),
        ("version: 1\n\ttargets: {}", "targets.yaml:2: not YAML"),
        ("version: 1\nversion: 1", "targets.yaml:2: the key 'version' is there already, in line 1"),
        ("version: 1\ntargets:\n  a: {kind: x86}\n  a: {kind: arm}", "targets.yaml:4: the key 'a' is there already"),
        ("version: 1\ntargets: {a: &a {kind: x86}, b: *a}", "anchors and aliases"),
        ("version: !!python/object:os.system 1", "tags (!) are not allowed"),
        ("? [a]\n: 1", "a key must be plain text"),
        ("version: 1\n---\nversion: 1", "not YAML"),
        ("[" * 5000, "nested more than"),
        ("version: 1\x00", "U+0000 is not allowed"),
        ('version: "\\UFFFFFFFF"', "not YAML"),
        ("#" * (MAX_CHARACTERS + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_targets_file_is_refused(text: str, expected: str):
    assert expected in message(text)


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(TargetError, match=r"nowhere\.yaml: no such file"):
        load_targets(tmp_path / "nowhere.yaml")


def test_a_folder_is_refused_by_name(tmp_path: Path):
    with pytest.raises(TargetError, match="cannot be read"):
        load_targets(tmp_path)


def test_a_path_that_no_file_can_have_is_refused():
    with pytest.raises(TargetError, match="cannot be read"):
        load_targets("a\0b")


@pytest.mark.parametrize(("data", "expected"), [(b"\x7fELF\xff\x00", "not UTF-8"), (b"\xff" * 300_000, "too large")])
def test_a_binary_file_is_refused(tmp_path: Path, data: bytes, expected: str):
    path = tmp_path / "targets.yaml"
    path.write_bytes(data)
    with pytest.raises(TargetError, match=expected):
        load_targets(path)


def test_a_byte_order_mark_is_read_over(tmp_path: Path):
    path = tmp_path / "targets.yaml"
    path.write_bytes(b"\xef\xbb\xbfversion: 1\ntargets: {a: {kind: arm}}\n")
    assert load_targets(path)[0].name == "a"


WORDS = """
    version targets native preset kind x86 arm cuda cpu cores features measure rpc tracker key budget minutes trials
    architectures precision float16
    sm_80 +avx2 -avx2 local none haswell host 1 -1 1.5 : - ? & * ! | > ' " # % @ ` --- ..."""
SYNTAX = [
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "version: 1\ntargets:\n  a: ",
    "{kind: x86, ",
    "\\U",
    "\t",
    "\0",
]
FRAGMENTS = st.sampled_from(WORDS.split() + SYNTAX)


@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=40).map("".join))
def test_any_text_gives_targets_or_a_target_error(text: str):
    try:
        targets = parse_targets(text, "targets.yaml", host=HOST)
    except TargetError as exc:
        assert exc.message.startswith("targets.yaml")
    else:
        assert targets


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["x86", "native", "local"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rpc", "minutes", "key"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted({key for keys in KEYS.values() for key in keys})), VALUES))
def test_any_values_give_a_target_or_a_target_error(entry: dict[str, object]):
    text = json.dumps({"version": 1, "targets": {"it": entry}}, ensure_ascii=True)
    try:
        assert parse_targets(text, "targets.yaml", host=HOST)[0].name == "it"
    except TargetError as exc:
        assert exc.message.startswith("targets.yaml")
