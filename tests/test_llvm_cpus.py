"""The tables shipped with the package: what LLVM knows, and the JSON Schema of targets.yaml."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tvmbridge.targets import targets_json_schema
from tvmbridge.targets.declared import KEYS
from tvmbridge.targets.llvm import check_features, llvm_cpus, usable_features

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.compiler
def test_the_llvm_table_is_what_the_installed_llvm_says():
    make_llvm_cpus = script("make_llvm_cpus")
    assert make_llvm_cpus.TABLE_PATH.read_text() == make_llvm_cpus.render_table()


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("machine", "cpu", "features"),
    [
        ("x86_64", "x86-64-v4", ("+avx512bf16", "+gfni")),
        ("x86_64", "sapphirerapids", ("-avx512f",)),
        ("x86_64", "znver4", ("-avx2",)),
        ("x86_64", "x86-64", ("+avx10.2",)),
        ("aarch64", "generic", ("+sve2", "+bf16")),
        ("aarch64", "neoverse-v1", ("-sve",)),
        ("aarch64", "neoverse-n2", ("+i8mm", "-fullfp16")),
    ],
)
def test_features_add_up_as_in_llvm(machine: str, cpu: str, features: tuple[str, ...]):
    make_llvm_cpus = script("make_llvm_cpus")
    selected = set(make_llvm_cpus.SELECTED[machine].split())
    assert usable_features(machine, cpu, features) == make_llvm_cpus.llvm_features(machine, cpu, *features) & selected


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_cpu_of_the_table_can_run_float_code(machine: str):
    for cpu in llvm_cpus(machine):
        check_features(machine, cpu, ())
        assert usable_features(machine, cpu, ())


def test_the_shipped_schema_is_up_to_date():
    shipped = (ROOT / "tvmbridge" / "targets.schema.json").read_text()
    assert shipped == json.dumps(targets_json_schema(), indent=1) + "\n"


def test_the_schema_allows_the_keys_that_the_parser_takes():
    entries = targets_json_schema()["properties"]["targets"]["additionalProperties"]["oneOf"]
    assert [tuple(entry["properties"]) for entry in entries] == [
        tuple(key for key in entry["properties"] if key in keys)
        for entry, keys in zip(entries, KEYS.values(), strict=True)
    ]
    assert [set(entry["properties"]) for entry in entries] == [set(keys) for keys in KEYS.values()]


def test_importing_targets_needs_no_yaml_and_no_compiler():
    code = "import sys, tvmbridge.targets, tvmbridge.host; print(sorted({'yaml', 'tvm', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
