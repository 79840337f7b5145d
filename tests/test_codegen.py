"""Code generation: weights packed and shared, linkers found or named, libraries described and reproducible."""

from __future__ import annotations

import itertools
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import lower_expression, plan, random_array, run_lowered, runnable_targets
from tvm import relax

from tvmbridge.codegen import FOREIGN_GLIBC, build_variant
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.elf import read_elf_facts
from tvmbridge.codegen.fatbin import parse_machine_code, parse_ptx
from tvmbridge.codegen.link import Linker, find_linker, link
from tvmbridge.codegen.plan import KernelPlan, plan_kernels
from tvmbridge.errors import CompileError, ToolchainError
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules import FALLBACK, fitting_templates
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
NATIVE = runnable_targets()[0]


def constant(*shape: int, seed: int = 0) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(seed), shape, F32), F32)


SHARED = constant(48, 48)


def network(target=NATIVE) -> LoweredModel:  # type: ignore[no-untyped-def]
    """Three products with one weight: two by the same kernel, one by another."""

    def build(x: relax.Expr) -> relax.Expr:
        y = op.nn.relu(op.matmul(op.nn.relu(op.matmul(x, SHARED)), SHARED))
        return op.negative(op.multiply(op.matmul(y, SHARED), constant(48, seed=1)))

    return lower_expression(build, [((6, 48), F32)], target)


def planned(kernel: Kernel, packed: bool) -> KernelPlan:
    """With the template that packs weights, or with the one that takes them as they are."""
    template = next(t for t in fitting_templates(kernel, NATIVE) if (t.name == FALLBACK) != packed)
    return plan(kernel, NATIVE, template, template.guess(kernel, NATIVE))


LANES = NATIVE.vector_bits // 32
AS_IT_IS, PACKED = (48, 48), (48 // LANES, 48, LANES)


@pytest.mark.parametrize(("packed", "shape"), [(False, AS_IT_IS), (True, PACKED)])
def test_a_weight_that_is_used_twice_in_one_order_is_kept_once(packed: bool, shape: tuple[int, ...]) -> None:
    lowered = network()
    assert sum(kernel.calls for kernel in lowered.kernels) == 3
    _, weights = assemble(lowered, [planned(kernel, packed) for kernel in lowered.kernels])
    assert sorted(weight.shape for weight in weights) == sorted([shape, (48,)])


def test_a_weight_that_is_used_in_two_orders_is_kept_twice() -> None:
    lowered = network()
    _, weights = assemble(
        lowered, [planned(k, packed) for k, packed in zip(lowered.kernels, (True, False), strict=True)]
    )
    assert sorted(weight.shape for weight in weights) == sorted([PACKED, (48,), AS_IT_IS])
    packed = next(weight for weight in weights if weight.shape == PACKED)
    np.testing.assert_array_equal(packed[1], SHARED.value.numpy()[:, LANES : 2 * LANES])


def test_every_packing_gives_the_same_outputs() -> None:
    lowered = network()
    x = random_array(np.random.default_rng(2), (6, 48), F32)
    w = SHARED.value.numpy().astype("float64")
    product = np.maximum(np.maximum(x @ w, 0) @ w, 0) @ w * constant(48, seed=1).value.numpy()
    for choices in itertools.product((False, True), repeat=2):
        plans = {k.name: planned(k, packed) for k, packed in zip(lowered.kernels, choices, strict=True)}
        chosen = {name: (plan.template, plan.config) for name, plan in plans.items()}
        (output,) = run_lowered(lowered, NATIVE, [x], lambda kernel: chosen[kernel.name])  # noqa: B023 -- called at once
        np.testing.assert_allclose(-output, product, rtol=1e-3, atol=1e-5 * np.abs(product).max())


def test_a_model_without_weights_takes_none() -> None:
    lowered = lower_expression(lambda x: op.exp(x), [((3, 5), F32)], NATIVE)
    module, weights = assemble(lowered, plan_kernels(lowered, NATIVE, None))
    assert weights == ()
    assert len(module["main"].params) == 1


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    libraries = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        variant, _ = build_variant(network(), NATIVE, None, tmp_path / name)
        libraries.append((variant.library.read_bytes(), [weight.tobytes() for weight in variant.weights]))
    assert libraries[0] == libraries[1]


def test_a_variant_says_what_it_is(tmp_path: Path) -> None:
    lowered = network()
    variant, plans = build_variant(lowered, NATIVE, None, tmp_path)
    assert (variant.kernels, variant.tuned_kernels) == (len(lowered.kernels), 0) == (len(plans), 0)
    assert variant.requires.machine == NATIVE.machine
    assert variant.requires.glibc is not None
    assert [path.name for path in variant.runtime_libraries] == ["libtvm_runtime.so"]
    assert read_elf_facts(variant.library).machine == NATIVE.machine


@pytest.mark.parametrize("preset", ["arm", "arm:cortex-a72", "x86", "x86:x86-64-v4"])
def test_code_is_for_the_machine_of_the_target(preset: str, tmp_path: Path) -> None:
    target = parse_preset(preset)
    try:
        find_linker(target.machine)
    except ToolchainError:  # no such linker here: then the build has to say so
        with pytest.raises(ToolchainError, match=f"no linker for {target.machine}"):
            build_variant(network(target), target, None, tmp_path)
        return
    variant, _ = build_variant(network(target), target, None, tmp_path)
    runtimes = [read_elf_facts(path) for path in variant.runtime_libraries]
    assert {facts.machine for facts in (read_elf_facts(variant.library), *runtimes)} == {target.machine}
    assert [path.name for path in variant.runtime_libraries] == ["libtvm_runtime.so"]
    assert tuple(map(int, (variant.requires.glibc or "0").split("."))) <= FOREIGN_GLIBC
    header = variant.library.read_bytes()[:20]
    assert struct.unpack_from("<H", header, 18)[0] == {"x86_64": 62, "aarch64": 183}[target.machine]


def test_code_for_a_board_that_wants_a_newer_glibc_than_boards_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = parse_preset("arm" if NATIVE.machine == "x86_64" else "x86")
    monkeypatch.setattr("tvmbridge.codegen.FOREIGN_GLIBC", (2, 26))
    with pytest.raises(CompileError, match=r"libtvm_runtime\.so of .* glibc 2\.27; boards are promised 2\.26"):
        build_variant(network(target), target, None, tmp_path)


def test_a_missing_linker_is_an_error_that_names_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for machine, package in (("x86_64", "apt-get install gcc "), ("aarch64", "gcc-aarch64-linux-gnu")):
        with pytest.raises(ToolchainError, match=f"no linker for {machine}") as caught:
            find_linker(machine)
        assert package in str(caught.value.hint)


@pytest.mark.parametrize(
    ("present", "machine", "chosen"),
    [
        (["aarch64-linux-gnu-gcc", "ld.lld"], "aarch64", "aarch64-linux-gnu-gcc"),
        (["cc", "ld.lld", "zig"], "aarch64", "ld.lld"),
        (["cc", "zig"], "aarch64", "zig"),
        (["ld.lld", "gcc"], "x86_64", "gcc"),
        (["x86_64-linux-gnu-gcc", "zig"], "x86_64", "x86_64-linux-gnu-gcc"),
    ],
)
def test_the_best_linker_that_fits_is_taken(
    present: list[str], machine: str, chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in present:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    linker = find_linker(machine)
    assert linker.name == chosen
    assert linker.command[0] == str(tmp_path / chosen)


def test_a_linker_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "ld").write_text("#!/bin/sh\necho it is broken >&2; exit 3\n")
    (tmp_path / "ld").chmod(0o755)
    with pytest.raises(CompileError, match="ld failed with status 3: it is broken"):
        link(Linker("ld", (str(tmp_path / "ld"),)), ["a.o"], str(tmp_path / "a.so"))
    with pytest.raises(CompileError, match=r"gone could not link a\.so"):
        link(Linker("gone", (str(tmp_path / "gone"),)), ["a.o"], str(tmp_path / "a.so"))


def test_elf_facts_of_something_else_are_an_error_that_names_it(tmp_path: Path) -> None:
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF", random.Random(0).randbytes(4096)):
        (tmp_path / "odd.so").write_bytes(content)
        with pytest.raises(CompileError, match=r"odd\.so"):
            read_elf_facts(tmp_path / "odd.so")
    with pytest.raises(CompileError, match=r"none\.so"):
        read_elf_facts(tmp_path / "none.so")


def test_elf_facts_name_the_glibc_floor() -> None:
    facts = read_elf_facts(Path(shutil.which("env") or "/usr/bin/env").resolve())
    assert facts.glibc is not None and facts.glibc.startswith("2.")


def fatbin(*entries: tuple[int, int]) -> bytes:
    """A fat binary of (kind, architecture) entries, 16 bytes of code each."""
    body = b"".join(struct.pack("<HHIQ12xI32x", kind, 0x101, 64, 16, arch) + bytes(16) for kind, arch in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_machine_code_is_told_from_ptx_wherever_it_lies() -> None:
    data = b"\x7fELF junk" + fatbin((2, 90), (1, 90), (2, 80)) + b"more" + fatbin((1, 75), (2, 89))
    assert parse_machine_code(data) == ("sm_80", "sm_89", "sm_90")
    assert parse_machine_code(fatbin((1, 90))) == ()
    assert parse_machine_code(b"") == () == parse_ptx(b"")
    assert parse_ptx(data) == ("sm_75", "sm_90") and parse_ptx(fatbin((2, 90))) == ()


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255), st.integers(0, 300))
def test_damaged_fat_binaries_are_read_to_their_end(junk: bytes, place: int, byte: int, length: int) -> None:
    data = bytearray(junk + fatbin((2, 90), (1, 90), (2, 80)) + junk)
    data[place % len(data)] = byte
    found = parse_machine_code(bytes(data[: max(4, len(data) - length)]))
    assert all(name.startswith("sm_") for name in found)
