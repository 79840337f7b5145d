"""Whole networks for GPUs, built where there is none: machine code, PTX, launches, resources. Where there is one, run.

`make test-cuda` builds all of them, `make test` those that are marked slow.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import networks
import tvmbridge
from comparison.gpu_figures import LIMITS, TIMED_LIMITS
from comparison.gpu_plan import Precision
from tests.conformance.cases import LIGHT_URL
from tvmbridge.bundle import BuiltVariant
from tvmbridge.bundle.gpu_code import GpuFunction
from tvmbridge.codegen import KernelPlan, build_variant
from tvmbridge.codegen.fatbin import list_machine_code, list_ptx
from tvmbridge.codegen.launch_limits import find_launch_fault
from tvmbridge.host import detect_host
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset

pytestmark = [pytest.mark.timeout(1800)]

OLDEST, NEWEST = "sm_75", "sm_90"
IN_REGISTERS = frozenset({"contraction", "tensor_cores"})  # templates whose accumulators have to stay there
LIGHT_FOLDER = Path(onnx.__file__).parent.parent / LIGHT_URL
LIGHT = sorted(path.stem for path in LIGHT_FOLDER.glob("light_*.onnx"))
FLOAT16 = ("mlp", "resnet50", "mobilenet_v2", "bert4")


def import_network(name: str, folder: Path) -> tvmbridge.ImportedModel:
    path = LIGHT_FOLDER / f"{name}.onnx"
    if name in networks.NETWORKS:
        path = folder / f"{name}.onnx"
        onnx.save(networks.make_network(name), path)
    return tvmbridge.import_onnx(path)


def build(name: str, preset: str, folder: Path) -> tuple[BuiltVariant, tuple[KernelPlan, ...]]:
    target = parse_preset(preset)
    return build_variant(lower(import_network(name, folder), target), target, None, folder)


def spilling(function: GpuFunction) -> list[str]:
    """Where the function keeps anything in local memory."""
    return [
        f"{function.name} on {code.architecture}: {code.stack_bytes} bytes of stack, {code.spill_store_bytes} + "
        f"{code.spill_load_bytes} bytes of spills, {code.registers} registers"
        for code in function.code
        if code.stack_bytes or code.spills
    ]


def assert_sound(variant: BuiltVariant, plans: tuple[KernelPlan, ...]) -> None:
    """It has code and PTX, launches what it holds and within the limits, and its products stay in registers."""
    assert (list_machine_code(variant.library), list_ptx(variant.library)) == ((OLDEST, NEWEST), (NEWEST,))
    assert variant.gpu is not None
    functions = variant.gpu.functions
    assert len({function.name for function in functions}) == len(functions)
    assert {plan.symbol for plan in plans} <= {function.kernel for function in functions}
    for function in functions:
        assert [code.architecture for code in function.code] == [OLDEST, NEWEST], function.name
        assert min(*function.grid, *function.block) >= 1, function
        assert [find_launch_fault(function, architecture) for architecture in (OLDEST, NEWEST)] == [None, None]
    products = {plan.symbol for plan in plans if plan.template.name in IN_REGISTERS}
    assert products
    assert [line for f in functions if f.kernel in products for line in spilling(f)] == []


def test_there_are_nine_light_networks():
    assert len(LIGHT) == 9


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_benchmark_network_is_built_for_the_oldest_and_the_newest_architecture(name: str, tmp_path: Path) -> None:
    assert_sound(*build(name, f"cuda:{OLDEST},{NEWEST}", tmp_path))


@pytest.mark.cuda
@pytest.mark.parametrize("name", FLOAT16)
def test_a_benchmark_network_is_built_in_half_precision(name: str, tmp_path: Path) -> None:
    assert_sound(*build(name, f"cuda:{OLDEST},{NEWEST},float16", tmp_path))


@pytest.mark.cuda
@pytest.mark.parametrize("name", LIGHT)
def test_a_light_network_is_built_for_the_oldest_and_the_newest_architecture(name: str, tmp_path: Path) -> None:
    assert_sound(*build(name, f"cuda:{OLDEST},{NEWEST}", tmp_path))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda_gpu")
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_benchmark_network_is_right_on_the_gpu(name: str, precision: Precision, tmp_path: Path) -> None:
    amplified = precision == "float16" and name in networks.AMPLIFYING
    tolerance = (TIMED_LIMITS if amplified else LIMITS)[precision]
    architecture = detect_host(gpus=True).gpus[0].architecture
    preset = f"cuda:{architecture}" + (",float16" if precision == "float16" else "")
    report = tvmbridge.build(
        import_network(name, tmp_path), [preset], tmp_path / "m.tvmb", tune=False, tolerance=tolerance
    )
    (outcome,) = report.outcomes
    assert outcome.error is None and outcome.variant is not None
    assert outcome.variant.unverified_because is None and outcome.variant.accuracy is not None
    assert outcome.variant.accuracy.max_relative <= tolerance
