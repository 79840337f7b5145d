"""What `build` and `inspect` say of GPU code: what compiled it, what it takes, and which kernels spill registers."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import tests.onnx_models as models
from tests.test_bundle import make_variant
from tvmbridge.bundle.gpu_code import GpuBuild, GpuFunction, MachineCode
from tvmbridge.cli.build import _show_spills, build_command
from tvmbridge.cli.inspect import inspect_command
from tvmbridge.pipeline import TargetOutcome
from tvmbridge.targets import parse_preset

TARGET = parse_preset("cuda:sm_75,sm_90")
GOLDEN = Path(__file__).parent / "golden" / "bundle-v2-gpu.tvmb"


def function(kernel: str, *spilled: int) -> GpuFunction:
    """A function that keeps so many bytes in local memory on each of the target's architectures."""
    code = [
        MachineCode(name, 128, 0, size, size // 2, size - size // 2)
        for name, size in zip(TARGET.architectures, spilled, strict=True)
    ]
    return GpuFunction(f"{kernel}_kernel", kernel, (1, 1, 1), (256, 1, 1), 0, tuple(code))


def spills(folder: Path, *functions: GpuFunction) -> str | None:
    variant = make_variant(folder, "gpu", gpu=GpuBuild("nvcc 13.0.88", functions))
    return _show_spills(TargetOutcome(TARGET, 0.0, variant))


def test_build_names_the_kernels_that_spill_the_worst_first(tmp_path):
    several = [function(f"dense{index}", 4 * index, 8 * index) for index in range(1, 4)]
    assert spills(tmp_path, function("softmax", 0, 0), *several) == (
        "3 kernels keep values in local memory for want of registers: dense3 on sm_90 (24 bytes), dense2 on sm_90 "
        "(16 bytes), dense3 on sm_75 (12 bytes), dense1 on sm_90 (8 bytes), dense2 on sm_75 (8 bytes), 1 more"
    )
    assert spills(tmp_path, function("dense", 0, 20)) == (
        "1 kernel keeps values in local memory for want of registers: dense on sm_90 (20 bytes)"
    )


def test_build_says_nothing_of_spills_where_there_are_none(tmp_path):
    assert spills(tmp_path, function("dense", 0, 0)) is None
    assert _show_spills(TargetOutcome(TARGET, 0.0, make_variant(tmp_path, "native"))) is None
    assert _show_spills(TargetOutcome(TARGET, 0.0)) is None


def test_inspect_says_what_compiled_gpu_code_and_what_it_takes():
    said = CliRunner().invoke(inspect_command, [str(GOLDEN)], standalone_mode=False).output
    assert "gpu: compiled by nvcc 13.0.88; at most 64 registers a thread, no kernel spills registers" in said
    assert "native: compiled" not in said
    described = json.loads(CliRunner().invoke(inspect_command, [str(GOLDEN), "--json"], standalone_mode=False).output)
    assert [variant["gpu"] for variant in described["variants"]] == [
        {"toolkit": "nvcc 13.0.88", "max_registers": 64, "spills": False},
        None,
    ]


@pytest.mark.compiler
@pytest.mark.cuda
@pytest.mark.slow
def test_build_as_json_has_every_function_with_its_launch_and_its_machine_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(models.mlp(), "model.onnx")
    options = ["--target", "cuda:sm_75,sm_90", "--target", "native", "--no-tune", "--json"]
    said = CliRunner().invoke(build_command, ["model.onnx", *options], standalone_mode=False)
    cuda, native = json.loads(said.stdout)["targets"]
    assert native["gpu"] is None and cuda["gpu"]["toolkit"].startswith("nvcc 13.")
    kernels = {kernel["name"] for kernel in cuda["kernels"]}
    for each in cuda["gpu"]["functions"]:
        assert each["kernel"].removesuffix("_packed") in kernels
        assert [code["architecture"] for code in each["code"]] == ["sm_75", "sm_90"]
        assert each["block"][0] >= 1 and all(code["registers"] > 0 for code in each["code"])
