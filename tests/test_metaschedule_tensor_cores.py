"""MetaSchedule on tensor cores: which kernels, what a log may say of them, and that it computes what they compute."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from gpu_metaschedule_cases import CASES, GPU, proposed
from kernels import lower_expression, random_array
from onnx import helper
from onnx_models import model, random_weight, value
from tvm import relax
from tvm.s_tir import TensorIntrin
from tvm.s_tir import meta_schedule as ms

from tests.cuda_emulation import run_emulated
from tvmbridge.codegen import build_variant
from tvmbridge.codegen.fatbin import list_machine_code
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import Kernel, LoweredModel, lower
from tvmbridge.schedules import tensor_intrinsics, tensor_spaces
from tvmbridge.schedules.metaschedule import TEMPLATE, trace_config
from tvmbridge.schedules.tensor_spaces import has_tensor_space
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine, metaschedule_tasks
from tvmbridge.tuning.exchange import export_database, import_database
from tvmbridge.tuning.log import TuningLog, read_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord

pytestmark = pytest.mark.compiler


def record(kernel: Kernel, config: dict, target=GPU, time_us: float = 1.0) -> TrialRecord:
    return TrialRecord(
        kernel=kernel.key,
        target=target.key,
        template=TEMPLATE.name,
        template_version=TEMPLATE.version,
        config=config,
        times_us=(time_us,),
        error=None,
        tvm="0",
        seed=0,
        when="2026-01-01T00:00:00Z",
    )


def product(lowered: LoweredModel) -> Kernel:
    (kernel,) = (each for each in lowered.kernels if has_tensor_space(each, GPU))
    return kernel


@functools.cache
def ragged() -> tuple[Kernel, dict]:
    """A product of ragged extents, and a config for it."""
    kernel = product(CASES["ragged"].lower())
    return kernel, proposed(kernel, 1)[0].config


@pytest.mark.parametrize("name", CASES)
def test_products_of_float16_are_searched_on_tensor_cores(name: str) -> None:
    assert product(CASES[name].lower())


def test_float32_products_and_those_of_few_rows_are_not() -> None:
    weight = relax.const(random_array(np.random.default_rng(0), (64, 48), "float32"), "float32")
    for rows, target in ((32, parse_preset("cuda:sm_80")), (1, GPU), (32, parse_preset("native"))):
        lowered = lower_expression(lambda x: relax.op.matmul(x, weight), [((rows, 64), "float32")], target)
        assert not any(has_tensor_space(kernel, target) for kernel in lowered.kernels)


def test_a_trace_replays_to_itself_and_leaves_the_kernel_as_it_is() -> None:
    kernel, config = ragged()
    before = tvm_ffi.structural_hash(kernel.function)
    first, again = (TEMPLATE.schedule(kernel, GPU, config) for _ in range(2))
    assert trace_config(first.trace) == config
    assert tvm_ffi.structural_equal(first.function, again.function)
    assert tvm_ffi.structural_hash(kernel.function) == before
    assert "wmma_sync_16x16x16_f16f16f32" in config["trace"] and "tvmbridge" not in config["trace"]


def test_a_resumed_search_learns_from_the_log_and_proposes_nothing_that_is_in_it() -> None:
    kernel, config = ragged()
    (task,) = metaschedule_tasks(LoweredModel(None, (kernel,)), GPU, LogRecords([record(kernel, config)]))
    assert [candidate.config for candidate, _ in task.trials] == [config]
    engine = MetaScheduleEngine([task], GPU, seed=5)
    untuned = record(kernel, task.untuned.config)
    engine.learn([task.untuned], [msgspec.structs.replace(untuned, template=task.untuned.template.name)])
    assert config not in [candidate.config for candidate in engine.next_batch(16)]


def test_ways_are_found_where_numbers_drawn_first_do_not_go_with_ragged_extents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = product(CASES["edges"].lower())
    module = tvm.IRModule({"main": kernel.function})
    monkeypatch.setattr(tensor_spaces, "_SEEDS", (13,))
    assert tensor_spaces.tensor_ways(kernel, GPU, module) == []
    monkeypatch.setattr(tensor_spaces, "_SEEDS", (13, 14, 15))
    assert len(tensor_spaces.tensor_ways(kernel, GPU, module)) == 2  # the right factor as it is, or transposed


# A step out of order, another block or loop, and one step less have crashed TVM.
@pytest.mark.parametrize(
    ("step", "part", "other"),
    [
        ("UnsafeSetDType", 2, [0, "int8"]),
        ("Blockize", 1, ["l9"]),
        ("StorageAlign", 2, [0, -2, 2**31 - 1, 8]),
        ("TransformLayout", 1, ["b2", "(i0, i1) -> (i1, i0)"]),
        ("PadEinsum", 2, [[16, 16, 2**31 - 1]]),
        ("CacheRead", 2, [0, "wmma.matrix_b"]),
        ("Tensorize", 2, ["wmma_sync_16x16x16_f16f16f16", 1]),
        ("Annotate", 2, ["pragma_import_llvm"]),
        ("Bind", 2, ["threadIdx.z"]),
        ("GetSBlock", 2, [None, "main"]),
        ("EnterPostproc", 0, "ComputeInline"),
    ],
)
def test_a_trace_that_differs_in_a_step_is_refused(step: str, part: int, other: object) -> None:
    kernel, config = ragged()
    steps, decisions = json.loads(config["trace"])
    changed = next(each for each in steps if each[0] == step)
    changed[part] = other
    with pytest.raises(ValueError, match=r"none of the ways|does not end as|does not sample"):
        TEMPLATE.schedule(kernel, GPU, {"trace": json.dumps([steps, decisions], separators=(",", ":"))})


@pytest.mark.parametrize("number", [None, [], -1, 2**63, [1, 1, 1, 1, "2"], [1, 1, 1, 1, 0], [7, 1, 1, 1, 1], [1]])
def test_numbers_that_the_rules_would_not_sample_are_refused(number: object) -> None:
    kernel, config = ragged()
    steps, decisions = json.loads(config["trace"])
    decisions[0][1] = number
    with pytest.raises(Exception):  # noqa: B017 -- TVM's own too, which plan_kernel takes all
        TEMPLATE.schedule(kernel, GPU, {"trace": json.dumps([steps, decisions], separators=(",", ":"))})


def test_a_trace_for_tensor_cores_is_no_other_kernels() -> None:
    _, config = ragged()
    kernel = product(CASES["even"].lower())
    with pytest.raises(ValueError, match="none of the ways"):
        TEMPLATE.schedule(kernel, GPU, config)
    narrow = next(each for each in CASES["even"].lower().kernels if each.key != kernel.key)
    with pytest.raises(ValueError, match="not scheduled for tensor cores"):
        TEMPLATE.schedule(narrow, GPU, config)


@pytest.mark.cuda
def test_the_intrinsics_are_those_that_tvm_has_under_their_names() -> None:
    import tvm.s_tir.tensor_intrin  # noqa: F401 -- 20 s

    tensor_intrinsics.declare_intrinsics()
    for name in tensor_intrinsics.INTRINSICS:
        ours = TensorIntrin.get(tensor_intrinsics.our_name(name))
        theirs = TensorIntrin.get(name)
        for part in ("desc", "impl"):
            mine, its = (getattr(each, part).without_attr("global_symbol") for each in (ours, theirs))
            assert tvm_ffi.structural_equal(mine, its), (name, part)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["ragged", "convolution"])
def test_what_is_proposed_is_compiled_to_machine_code_of_each_architecture(name: str, tmp_path: Path) -> None:
    target = parse_preset("cuda:sm_75,sm_80,sm_90,float16")
    lowered = CASES[name].lower()
    kernel = product(lowered)
    config = proposed(kernel, 1)[0].config
    variant, plans = build_variant(lowered, target, LogRecords([record(kernel, config, target)]), tmp_path)
    assert TEMPLATE in [plan.template for plan in plans]
    assert list_machine_code(variant.library) == ("sm_75", "sm_80", "sm_90")


@pytest.mark.cuda
@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_what_is_proposed_computes_what_numpy_computes_on_an_emulated_gpu(order: str) -> None:
    ran = run_emulated([sys.executable, "-m", "gpu_metaschedule_cases"], CUDA_EMULATION_ORDER=order, timeout_s=1200)
    assert ran.stdout.split() == [word for name in CASES for word in (name, "2")]


def network() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    return model(nodes, [value("x", (33, 67))], [value("y", (33, 51))], {"w": random_weight((67, 51), 1)})


@pytest.mark.cuda
def test_a_database_is_read_by_tvm_and_comes_back_as_the_same_records(tmp_path: Path) -> None:
    import tvm.s_tir.tensor_intrin  # noqa: F401 -- by which TVM replays it

    imported = import_onnx(network())
    kernel = product(lower(imported, GPU))
    found = [record(kernel, each.config, time_us=2.0 + place) for place, each in enumerate(proposed(kernel, 3))]
    with TuningLog.open(tmp_path / "log.jsonl") as log:
        log.append(found)
    exported = export_database(tmp_path / "log.jsonl", imported, GPU, tmp_path / "database")
    assert exported.mapped == 3 and exported.left == {}
    stock = ms.database.JSONDatabase(work_dir=str(tmp_path / "database"))
    assert sorted(float(each.run_secs[0]) for each in stock.get_all_tuning_records()) == [2e-6, 3e-6, 4e-6]
    assert import_database(tmp_path / "database", imported, GPU, tmp_path / "back.jsonl").mapped == 3
    configs = [
        sorted(each.config["trace"] for each in records) for records in (found, read_log(tmp_path / "back.jsonl"))
    ]
    assert configs[0] == configs[1]
