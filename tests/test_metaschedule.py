"""MetaSchedule as an engine: what it proposes computes what the kernel computes, and is measured once."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import lower_expression, lower_function, random_array, run_lowered, runnable_targets
from tvm import relax, te

from tvmbridge.codegen import build_variant
from tvmbridge.codegen.fatbin import list_machine_code
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules import fitting_templates, recorded_templates
from tvmbridge.schedules.metaschedule import TEMPLATE
from tvmbridge.targets import parse_preset
from tvmbridge.tuning import engines
from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine, metaschedule_tasks
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate

pytestmark = pytest.mark.compiler

F32 = "float32"
NATIVE = runnable_targets()[0]
WEIGHTS = random_array(np.random.default_rng(0), (19, 37), F32)
IMAGE, FILTERS = (1, 9, 11, 8), random_array(np.random.default_rng(1), (3, 3, 8, 16), F32)


@pytest.fixture(autouse=True)
def small_populations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in earnest, but quick: few candidates are thrown away, and the cost model is asked early."""
    for name, size in (("_POPULATION", 16), ("_RANDOM_POPULATION", 4), ("_GENERATIONS", 1), ("_RANDOM_TRIALS", 8)):
        monkeypatch.setattr(engines.metaschedule, name, size)


def dense() -> LoweredModel:
    """A matmul of ragged extents with its activation."""
    return lower_expression(
        lambda x: relax.op.nn.relu(relax.op.matmul(x, relax.const(WEIGHTS, F32))), [((13, 19), F32)], NATIVE
    )


def dense_reference(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype("float64") @ WEIGHTS, 0)


def convolution() -> LoweredModel:
    layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
    return lower_expression(
        lambda x: relax.op.nn.relu(relax.op.nn.conv2d(x, relax.const(FILTERS, F32), padding=(1, 1), **layouts)),
        [(IMAGE, F32)],
        NATIVE,
    )


def convolution_reference(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype("float64"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, FILTERS.astype("float64")), 0)


def softmax() -> LoweredModel:
    return lower_expression(lambda x: relax.op.nn.softmax(x), [((7, 101), F32)], NATIVE)


def softmax_reference(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype("float64"))
    return powers / powers.sum(-1, keepdims=True)


NETWORKS = {
    "dense": (dense, (13, 19), dense_reference),
    "convolution": (convolution, IMAGE, convolution_reference),
    "softmax": (softmax, (7, 101), softmax_reference),
}


def made_up(batch: Sequence[Candidate], target=NATIVE) -> list[TrialRecord]:
    """Records with a time that depends on the config only; every seventh config fails."""
    records = []
    for candidate in batch:
        number = zlib.crc32(repr(candidate.key).encode())
        records.append(
            TrialRecord(
                kernel=candidate.kernel.key,
                target=target.key,
                template=candidate.template.name,
                template_version=candidate.template.version,
                config=candidate.config,
                times_us=() if number % 7 == 0 else (10.0 + number % 91,),
                error="did not work" if number % 7 == 0 else None,
                tvm="0",
                seed=0,
                when="2026-01-01T00:00:00Z",
            )
        )
    return records


def search(lowered: LoweredModel, trials: int, records: Sequence[TrialRecord] = (), target=NATIVE) -> list[TrialRecord]:
    """Search with made-up times until `trials` are spent or nothing is left."""
    engine = MetaScheduleEngine(metaschedule_tasks(lowered, target, LogRecords(records)), target, seed=5)
    found: list[TrialRecord] = []
    while len(found) < trials and (batch := engine.next_batch(trials - len(found))):
        measured = made_up(batch, target)
        engine.learn(batch, measured)
        found += measured
    return found


def traces(records: Sequence[TrialRecord]) -> list[str]:
    return [str(record.config["trace"]) for record in records if record.template == TEMPLATE.name]


def one_trace(lowered: LoweredModel) -> tuple[Kernel, list]:
    found = search(lowered, len(lowered.kernels) + 1)
    kernels = {kernel.key: kernel for kernel in lowered.kernels}
    return kernels[found[-1].kernel], json.loads(str(found[-1].config["trace"]))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_it_proposes_computes_what_numpy_computes(name: str) -> None:
    make, shape, reference = NETWORKS[name]
    lowered = make()
    x = random_array(np.random.default_rng(3), shape, F32)
    found = [record for record in search(lowered, 6) if record.template == TEMPLATE.name]
    assert found
    for record in found:
        winner = msgspec.structs.replace(record, times_us=(1.0,), error=None)
        plans = {k.key: plan_kernel(k, NATIVE, LogRecords([winner])) for k in lowered.kernels}
        assert plans[record.kernel].record == winner and plans[record.kernel].template is TEMPLATE
        (output,) = run_lowered(lowered, NATIVE, [x], lambda k, p=plans: (p[k.key].template, p[k.key].config))
        np.testing.assert_allclose(output, reference(x), rtol=1e-4, atol=1e-4)


def test_replaying_leaves_the_kernel_as_it_is() -> None:
    lowered = softmax()
    before = {kernel.key: tvm_ffi.structural_hash(kernel.function) for kernel in lowered.kernels}
    kernels = {kernel.key: kernel for kernel in lowered.kernels}
    for record in search(lowered, 12)[1:]:
        first, again = (TEMPLATE.schedule(kernels[record.kernel], NATIVE, record.config).function for _ in range(2))
        assert tvm_ffi.structural_equal(first, again)
    assert {kernel.key: tvm_ffi.structural_hash(kernel.function) for kernel in lowered.kernels} == before


def test_it_is_never_the_untuned_choice() -> None:
    (kernel,) = dense().kernels
    assert TEMPLATE not in fitting_templates(kernel, NATIVE)
    assert TEMPLATE in recorded_templates(kernel, NATIVE)
    assert TEMPLATE in recorded_templates(kernel, parse_preset("cuda:sm_80"))
    assert plan_kernel(kernel, NATIVE, None).template is not TEMPLATE


def test_the_same_seed_searches_the_same_way() -> None:
    np.random.seed(1)
    first, drawn = search(dense(), 30), np.random.random()
    np.random.seed(1)
    assert np.random.random() == drawn  # what others draw is left alone
    assert search(dense(), 30) == first
    assert len(first) == 30


def test_a_resumed_search_proposes_nothing_that_is_measured() -> None:
    lowered = dense()
    first = search(lowered, 30)
    more = search(lowered, 20, first)
    assert len(first) == 30 and len(more) == 20
    assert len({*traces(first), *traces(more)}) == len(first) + len(more) - 1  # the untuned choice is no trace


def test_a_small_space_is_searched_to_its_end() -> None:
    lowered = lower_expression(lambda x: relax.op.nn.relu(x), [((5, 7), F32)], NATIVE)
    found = search(lowered, 1000)
    assert 2 <= len(found) < 50
    assert search(lowered, 1000, found) == []


def test_a_kernel_that_metaschedule_cannot_transform_costs_its_untuned_trial_only() -> None:
    a = te.placeholder((16,), F32, "a")
    function = te.create_prim_func(
        [a, te.extern((16,), [a], lambda i, o: tvm.tirx.call_packed("nothing", i[0], o[0]), dtype=F32, name="opaque")]
    )
    lowered = LoweredModel(tvm.IRModule(), (lower_function(function),))
    found = search(lowered, 100)
    assert found[0].template != TEMPLATE.name
    assert len(traces(found)) <= 1


def test_a_kernel_with_unknown_extents_is_no_task() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    a = te.placeholder((rows, 37), F32, "a")
    kernel = lower_function(te.create_prim_func([a, te.compute((rows, 37), lambda i, j: a[i, j] * 2, "b")]))
    assert metaschedule_tasks(LoweredModel(tvm.IRModule(), (kernel,)), NATIVE, LogRecords()) == []


@pytest.mark.slow
def test_its_trials_are_measured_by_our_worker_and_resumed_from_our_log() -> None:
    lowered = dense()

    def tune(limit: int, known: Sequence[TrialRecord]) -> list[TrialRecord]:
        tasks = metaschedule_tasks(lowered, NATIVE, LogRecords(known))
        engine = MetaScheduleEngine(tasks, NATIVE, seed=7)
        with LocalMeasurer([task.kernel for task in tasks], NATIVE, 7) as measurer:
            found: list[TrialRecord] = []
            while len(found) < limit and (batch := engine.next_batch(limit - len(found))):
                measured = measurer.measure([(candidate, None) for candidate in batch])
                engine.learn(batch, measured)
                found += measured
        return found

    first = tune(9, [])
    more = tune(4, first)
    assert len(first) == 9 and len(more) == 4
    assert [record.error for record in (*first, *more)] == [None] * 13
    assert len({(record.template, record.config_key) for record in (*first, *more)}) == 13


@pytest.mark.slow
def test_what_it_proposes_for_cuda_is_compiled_to_machine_code(tmp_path: Path) -> None:
    target, op = parse_preset("cuda:sm_80,sm_90"), relax.op
    lowered = lower_expression(
        lambda x: op.nn.softmax(op.nn.relu(op.matmul(x, relax.const(WEIGHTS, F32)))), [((13, 19), F32)], target
    )
    found = []
    for task in metaschedule_tasks(lowered, target, LogRecords()):
        engine = MetaScheduleEngine([task], target, seed=5)
        engine.learn([task.untuned], made_up([task.untuned], target))
        found += engine.next_batch(1)
    records = [msgspec.structs.replace(record, times_us=(1.0,), error=None) for record in made_up(found, target)]
    variant, plans = build_variant(lowered, target, LogRecords(records), tmp_path)
    assert [plan.template for plan in plans] == [TEMPLATE] * len(lowered.kernels)
    assert list_machine_code(variant.library) == ("sm_80", "sm_90")


# Traces that come from anywhere.

STEP = ["GetSBlock", [], ["root", "main"], ["b0"]]


@pytest.mark.parametrize(
    ("steps", "decisions", "said"),
    [
        ([["UnsafeSetDtype", ["b0"], [0, "int8"], []]], [], "UnsafeSetDtype is not replayed"),
        ([["Tensorize", ["b0"], ["dot", 1], []]], [], "Tensorize is not replayed"),
        ([["Bind", ["l0"], ["threadIdx.x"], []]], [], "Bind is not replayed"),
        ([STEP, ["Annotate", ["b0", '"x"'], ["pragma_import_llvm"], []]], [], "pragma_import_llvm is not replayed"),
        ([STEP, ["Annotate", ["b0", 1], ["pragma_debug_skip_region"], []]], [], "skip_region is not replayed"),
        ([STEP, ["Annotate", ["b0", 4096], ["pragma_auto_unroll_max_step"], []]], [], "not a number up to 1024"),
        ([["GetLoops", ["b7"], [], ["l0"]]], [], "step 0 .* GetLoops does not take these operands"),
        ([STEP, ["GetLoops", ["b0", None], [], []]], [], "does not take these operands"),
        ([STEP, ["SampleComputeLocation", ["b0"], [], ["l1"]]], [], "does not take these operands"),
        ([STEP, ["SampleComputeLocation", ["b0"], [], ["l1"]]], [[1, None]], "does not take these operands"),
        ([STEP], [[0, 1]], "does not take these operands"),
        ([STEP], [[5, 1]], "decisions of no step"),
        ([["GetSBlock", [], ["root"]]], [], "not a trace"),
        (7, [], "not a trace"),
    ],
)
def test_a_trace_of_other_than_plain_loop_transformations_is_refused(steps: object, decisions: list, said: str) -> None:
    (kernel,) = dense().kernels
    with pytest.raises(ValueError, match=said):
        TEMPLATE.schedule(kernel, NATIVE, {"trace": json.dumps([steps, decisions])})


@pytest.mark.parametrize(
    "config", [{}, {"trace": 3}, {"trace": "[[],[]]", "more": 1}, {"trace": "["}, {"trace": "[" * 9999}]
)
def test_a_config_that_is_no_trace_is_refused(config: dict) -> None:
    (kernel,) = dense().kernels
    with pytest.raises(ValueError, match="trace"):
        TEMPLATE.schedule(kernel, NATIVE, config)


def test_a_vector_of_a_thousand_lanes_and_more_is_refused() -> None:
    lowered = lower_expression(lambda x: relax.op.nn.relu(x), [((2, 4096), F32)], NATIVE)
    (kernel,) = lowered.kernels
    steps = [["GetSBlock", [], ["relu", "main"], ["b0"]], ["GetLoops", ["b0"], [], ["l0", "l1"]]]
    with pytest.raises(ValueError, match="a vector of"):
        TEMPLATE.schedule(kernel, NATIVE, {"trace": json.dumps([[*steps, ["Vectorize", ["l1"], [], []]], []])})


def test_a_record_whose_trace_does_not_apply_is_passed_over_with_the_reason() -> None:
    other, trace = one_trace(softmax())
    (kernel,) = dense().kernels
    (record,) = made_up([Candidate(kernel, TEMPLATE, {"trace": json.dumps(trace)})])
    record = msgspec.structs.replace(record, times_us=(1.0,), error=None)
    plan = plan_kernel(kernel, NATIVE, LogRecords([record]))
    assert other.key != kernel.key
    assert plan.template is fitting_templates(kernel, NATIVE)[0] and plan.record is None
    assert len(plan.skipped) == 1 and plan.skipped[0].startswith("metaschedule {'trace': ")
    assert len(plan.skipped[0]) < 400


@functools.cache
def traced_dense() -> tuple[LoweredModel, Kernel, str]:
    lowered = dense()
    kernel, trace = one_trace(lowered)
    return lowered, kernel, json.dumps(trace)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_tampered_trace_fails_or_computes_the_same(data: st.DataObject) -> None:
    lowered, kernel, text = traced_dense()
    trace = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        part, index = trace, data.draw(st.integers(0, 1))
        while isinstance(part[index], list) and part[index]:
            part, index = part[index], data.draw(st.integers(0, len(part[index]) - 1))
        part[index] = data.draw(st.sampled_from([0, 1, -1, 2, 3, 64, 2**31 - 1, 2**63, None, 0.5, "b0", "l4", "x", []]))
    try:
        TEMPLATE.schedule(kernel, NATIVE, {"trace": json.dumps(trace)})
    except Exception:  # TVM's primitives raise many kinds, and plan_kernel takes them all
        return
    x = random_array(np.random.default_rng(3), (13, 19), F32)
    (output,) = run_lowered(lowered, NATIVE, [x], lambda _: (TEMPLATE, {"trace": json.dumps(trace)}))
    np.testing.assert_allclose(output, dense_reference(x), rtol=1e-4, atol=1e-4)
