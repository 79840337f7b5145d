"""The direction of imports, as docs/architecture.md draws it, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tvmbridge

PACKAGE = Path(tvmbridge.__file__).parent
HEAVY = {"tvm", "onnx", "onnxruntime", "onnxscript", "xgboost"}

# What each part of the package may import of the others. A part that is missing here fails the test below.
VOCABULARY = {
    "atomic_file",
    "cache",
    "child",
    "cuda_runtime",
    "emulation",
    "errors",
    "interrupts",
    "isolate",
    "signature",
    "version",
}
FORMATS = VOCABULARY | {
    "gpus",
    "host",
    "targets",
    "bundle",
    "tuning.budget",
    "tuning.record",
    "tuning.lookup",
    "tuning.log",
}
ALLOWED = {
    "__main__": {"cli"},
    "atomic_file": set(),
    "cache": {"atomic_file"},
    "child": set(),
    "cuda_runtime": set(),
    "emulation": set(),
    "errors": set(),
    "interrupts": set(),
    "isolate": {"child", "errors"},
    "version": set(),
    "signature": set(),
    "gpus": {"emulation"},
    "host": {"emulation", "errors", "gpus"},
    "targets": VOCABULARY | {"host", "tuning.budget", "tuning.record"},
    "bundle": VOCABULARY | {"targets"},
    "runtime": VOCABULARY | {"host", "bundle"},
    "tuning.budget": VOCABULARY,
    "tuning.record": VOCABULARY,
    "tuning.lookup": VOCABULARY | {"tuning.record"},
    "tuning.log": VOCABULARY | {"tuning.record", "tuning.lookup"},
    "device": FORMATS,
    "frontend": VOCABULARY,
    "lowering": FORMATS | {"frontend"},
    "schedules": FORMATS | {"lowering"},
    "tuning": FORMATS | {"device", "frontend", "lowering", "schedules", "codegen", "verify", "runtime"},
    "codegen": FORMATS | {"lowering", "schedules"},
    "verify": FORMATS | {"device", "frontend", "runtime"},
    "bisect": FORMATS | {"frontend", "lowering", "codegen", "verify", "runtime"},
    "profiling": FORMATS | {"lowering", "schedules", "tuning", "codegen"},
    "report": FORMATS | {"frontend", "lowering", "schedules", "tuning", "codegen"},
    "pipeline": FORMATS | {"frontend", "lowering", "tuning", "codegen", "verify", "profiling"},
    "backend": FORMATS | {"frontend", "lowering", "codegen", "runtime"},
    "cli": FORMATS | {"device", "frontend", "tuning", "verify", "runtime", "pipeline", "profiling", "report", "bisect"},
}
ALLOWED["__init__"] = {*ALLOWED, *FORMATS}  # each public name, when it is first used: see the test of what that loads
WITHOUT_COMPILER = FORMATS | {"runtime", "__init__", "__main__"}


def part_of(module: str) -> str:
    """The key of ALLOWED that a dotted name below `tvmbridge` belongs to."""
    first, _, rest = module.partition(".")
    specific = f"{first}.{rest.partition('.')[0]}"
    return specific if specific in ALLOWED else first


def imports_of(path: Path) -> set[str]:
    """The absolute names that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_a_part_imports_only_what_lies_below_it(path):
    part = part_of(module_name(path))
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import and in docs/architecture.md what it does"
    ours = {name.removeprefix("tvmbridge.") for name in imports_of(path) if "tvmbridge." in name}
    used = {part_of(name) for name in ours} - {part}
    assert used <= ALLOWED[part], f"{path.name} imports {sorted(used - ALLOWED[part])}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_formats_and_the_runtime_import_no_compiler(path):
    name = module_name(path)
    if part_of(name) in WITHOUT_COMPILER:
        heavy = {imported.partition(".")[0] for imported in imports_of(path)} & HEAVY
        assert heavy == set(), f"{name} imports {heavy}"
    else:
        assert part_of(name) in ALLOWED


@pytest.mark.parametrize("module", ["tvmbridge", "tvmbridge.cli", "tvmbridge.runtime", "tvmbridge.targets"])
def test_importing_it_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_a_file_says_its_duty_first_and_stays_below_400_lines(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.compiler
def test_the_public_names_are_all_there():
    missing = [name for name in tvmbridge.__all__ if not hasattr(tvmbridge, name)]
    assert missing == []
    assert callable(tvmbridge.build) and callable(tvmbridge.tune) and callable(tvmbridge.load)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        tvmbridge.nonsense  # noqa: B018
