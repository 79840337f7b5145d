"""Profiles: what is counted is right by hand, what is timed is what ran, and rates and shares follow from both."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T  # noqa: N812

import tests.onnx_models as models
import tvmbridge
from tests.kernels import lower_expression, lower_function
from tvmbridge.codegen import KernelPlan
from tvmbridge.errors import TuningError
from tvmbridge.lowering import Kernel
from tvmbridge.lowering.counts import count_bytes, count_flops
from tvmbridge.profiling import KernelProfile, NetworkProfile, Peak, profile_kernels, share_time
from tvmbridge.profiling.peak import measure_peak
from tvmbridge.profiling.peak_worker import _multiply_adds, _triad
from tvmbridge.runtime.kernel_clock import KernelClock
from tvmbridge.runtime.threads import PoolSize
from tvmbridge.schedules import Packing, Scheduled, Template, fitting_templates
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.measure.local import LocalMeasurer
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate
from tvmbridge.verify.variant import VariantCheck, check_variants

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
PEAK = Peak(gflops=100.0, gb_per_s=10.0)
KERNEL = KernelProfile("k", "k#0", "contraction", {"mr": 4}, False, 3, 50.0, 40.0, 2e6, 1000)


def counted(build, *inputs):
    """Flops and bytes of the most laborious kernel of an expression."""
    kernels = lower_expression(build, [(shape, "float32") for shape in inputs], NATIVE).kernels
    functions = [kernel.function for kernel in kernels]
    return max((count_flops(function), count_bytes(function)) for function in functions)


def test_a_matmul_multiplies_and_adds_once_per_row_column_and_step():
    assert counted(relax.op.matmul, (7, 13), (13, 5)) == (2 * 7 * 13 * 5, 4 * (7 * 13 + 13 * 5 + 7 * 5))


def test_padding_adds_no_operations_to_a_convolution():
    flops, size_bytes = counted(lambda x, w: relax.op.nn.conv2d(x, w, padding=1), (1, 3, 7, 11), (8, 3, 3, 3))
    assert flops == 2 * (7 * 11) * 8 * (3 * 3 * 3)
    assert size_bytes == 4 * (3 * 7 * 11 + 8 * 3 * 3 * 3 + 8 * 7 * 11)


def test_a_grouped_convolution_reads_only_its_groups_channels():
    flops, _ = counted(lambda x, w: relax.op.nn.conv2d(x, w, groups=4), (1, 8, 7, 7), (12, 2, 3, 3))
    assert flops == 2 * (5 * 5) * 12 * (2 * 3 * 3)


def test_a_softmax_compares_subtracts_adds_and_divides_each_element_once():
    assert counted(relax.op.nn.softmax, (3, 17)) == (4 * 3 * 17, 4 * 2 * 3 * 17)


def test_of_a_table_only_the_rows_taken_are_read():
    taken = lower_expression(
        lambda table, rows: relax.op.take(table, rows, axis=0), [((1009, 24), "float32"), ((7,), "int64")], NATIVE
    )
    (kernel,) = (k for k in taken.kernels if [int(axis) for axis in k.function.params[0].shape] == [1009, 24])
    assert count_bytes(kernel.function) == 4 * 7 * 24 + 8 * 7 + 4 * 7 * 24


def test_of_a_slice_only_the_slice_is_read():
    def part(x: relax.Expr) -> relax.Expr:
        return relax.op.strided_slice(x, axes=[1], begin=[3], end=[8])

    (kernel,) = lower_expression(part, [((6, 101), "float32")], NATIVE).kernels
    assert count_bytes(kernel.function) == 2 * 4 * 6 * 5


def test_an_input_that_is_read_again_and_again_counts_once():
    assert counted(relax.op.matmul, (64, 64), (64, 64))[1] == 4 * 3 * 64 * 64


@T.prim_func(s_tir=True)
def adds_as_often_as_told(n: T.Buffer((1,), "int32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("adds"):
        T.reads(n[0])
        T.writes(b[0:16])
        for i in range(n[0]):
            b[i] = b[i] + T.float32(1)


@T.prim_func(s_tir=True)
def halves_until_small(a: T.Buffer((1,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("halves"):
        T.reads(a[0])
        T.writes(a[0])
        while a[0] > T.float32(1):
            a[0] = a[0] * T.float32(0.5)


def doubled(rows: object = 64) -> tvm.tirx.PrimFunc:
    a = tvm.te.placeholder((rows, 3), "float32", "a")
    return tvm.te.create_prim_func([a, tvm.te.compute(a.shape, lambda i, j: a[i, j] * 2.0, "b")])


def unknown_rows() -> tvm.tirx.PrimFunc:
    return doubled(tvm.tirx.Var("rows", "int64"))


@pytest.mark.parametrize("function", [adds_as_often_as_told, halves_until_small, unknown_rows()])
def test_work_that_depends_on_the_data_is_not_counted(function):
    assert count_flops(function) is None


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float16", 2), ("int8", 1), ("bool", 1)])
def test_bytes_follow_the_dtype(dtype, size):
    a = tvm.te.placeholder((5, 3), dtype, "a")
    assert count_bytes(tvm.te.create_prim_func([a, tvm.te.compute((5, 3), lambda i, j: a[i, j], "b")])) == 30 * size


def test_rates_are_operations_and_bytes_over_the_time_in_the_network():
    assert KERNEL.total_us == 150.0
    assert KERNEL.gflops == pytest.approx(2e6 / 50e-6 / 1e9)
    assert KERNEL.gb_per_s == pytest.approx(1000 / 50e-6 / 1e9)


@pytest.mark.parametrize(
    ("flops", "size_bytes", "bound", "of_peak"),
    [
        (2e6, 1000, "compute", 0.4),
        (2e3, 250_000, "memory", 0.5),
        (None, 250_000, "memory", 0.5),
        (2e6, None, "compute", 0.4),
    ],
)
def test_a_kernel_is_held_against_the_peak_that_bounds_it(flops, size_bytes, bound, of_peak):
    kernel = dataclasses.replace(KERNEL, flops=flops, size_bytes=size_bytes)
    assert kernel.bound(PEAK) == bound
    assert kernel.of_peak(PEAK) == pytest.approx(of_peak)


def test_a_kernel_that_is_never_called_has_no_rates():
    view = dataclasses.replace(KERNEL, call_us=0.0)
    assert (view.gflops, view.gb_per_s, view.of_peak(PEAK), view.total_us) == (None, None, None, 0.0)


def test_shares_are_of_all_kernels_and_runtime_functions():
    slow = dataclasses.replace(KERNEL, name="slow", template="default", calls=1, call_us=600.0, alone_us=None)
    profile = NetworkProfile(1, PEAK, (slow, KERNEL), {"sort": 250.0})
    assert profile.total_us == 1000.0
    assert [profile.share(kernel) for kernel in profile.kernels] == [0.6, 0.15]
    assert profile.fallback == (slow,)
    assert profile.alone_us == 600.0 + 3 * 40.0 + 250.0
    assert NetworkProfile(1, PEAK, ()).share(KERNEL) == 0.0


def plan(name: str, template: str, function: object = None, *, packed: bool = False) -> KernelPlan:
    kernel = Kernel(name, function, f"{name}#0", frozenset(), 2)
    made = Template(template, 1, 0, *[lambda *_: None] * 4)
    return KernelPlan(kernel, made, {}, Scheduled(None, (Packing(1, 8),) if packed else ()), None)


def test_a_run_is_shared_among_kernels_the_most_expensive_first():
    plans = [plan("view", "default"), plan("add", "default"), plan("dense", "contraction", packed=True)]
    shares = share_time(plans, {"add": 10.0, "dense_packed": 70.0, "sort": 20.0})
    assert [(kernel.name, kernel.total_us, kernel.share, kernel.is_fallback) for kernel in shares] == [
        ("dense", 70.0, 0.7, False),
        ("add", 10.0, 0.1, True),
        ("view", 0.0, 0.0, True),
    ]


def test_without_times_there_are_no_shares():
    (share,) = share_time([plan("add", "default")], {})
    assert (share.total_us, share.share, share.is_fallback) == (None, None, True)


def test_the_clock_leaves_out_the_first_run_and_what_is_no_kernel(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tvmbridge.runtime.kernel_clock.time.perf_counter", lambda: now[0])
    clock, runs = KernelClock(), iter([9.0, 2.0, 4.0, 3.0])

    def run() -> None:
        slow_s = next(runs)
        for name, took_s in (("add", slow_s), ("vm.builtin.alloc_tensor", 1.0), ("add", 1.0), ("view", 0.5)):
            assert clock(None, name, True, None) == 0
            now[0] += took_s
            assert clock(None, name, False, None) == 0

    assert clock.time_kernels(run, seconds=0.0) == {"add": pytest.approx(4e6), "view": pytest.approx(5e5)}
    assert next(runs, None) is None


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[tvmbridge.BuildReport, np.ndarray]:
    """A network built for this machine, and an input for it."""
    path = tmp_path_factory.mktemp("profiled") / "m.tvmb"
    model = tvmbridge.import_onnx(models.mlp("batch"), dims={"batch": 5})
    (spec,) = model.signature.inputs
    report = tvmbridge.build(model, [NATIVE], path, tune=False, seconds=0.2, threads=1)
    return report, np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)


def test_a_session_times_every_kernel_and_still_computes_the_same(built):
    report, x = built
    (outcome,) = report.outcomes
    with tvmbridge.load(report.output, threads=1) as session:
        feeds = {session.inputs[0].name: x}
        before = session.run(feeds)
        times_us = session.time_kernels(feeds, seconds=0.05)
        after = session.run(feeds)
    assert sorted(times_us) == sorted(plan.symbol for plan in outcome.kernels)
    assert all(0 < time_us < 1e6 for time_us in times_us.values())
    for name, output in before.items():
        np.testing.assert_array_equal(output, after[name])
    with pytest.raises(ValueError, match="closed"):
        session.time_kernels(feeds)


def test_kernels_are_timed_on_the_thread_that_has_a_pool_for_them(built, monkeypatch):
    report, x = built
    threads: list[str] = []
    time_kernels = KernelClock.time_kernels

    def noting_the_thread(clock: KernelClock, run: Callable[[], object], seconds: float) -> dict[str, float]:
        threads.append(threading.current_thread().name)
        return time_kernels(clock, run, seconds)

    monkeypatch.setattr(KernelClock, "time_kernels", noting_the_thread)
    monkeypatch.setattr(PoolSize, "apply", lambda _: False)  # the caller's pool is too small
    with tvmbridge.load(report.output, threads=1) as session:
        times_us = session.time_kernels({session.inputs[0].name: x}, seconds=0.01)
    assert threads[0].startswith("tvmbridge") and len(times_us) == len(report.outcomes[0].kernels)


def test_a_clock_adds_up_what_lies_between_moments_that_only_the_device_can_read():
    moments, forgotten = itertools.count(), []

    def run() -> None:
        for name, before in [("k", True), ("k", False), ("vm.builtin.x", True), ("vm.builtin.x", False), ("k", True)]:
            assert clock(None, name, before, None) == 0
        clock(None, "k", False, None)

    clock = KernelClock(lambda: next(moments), lambda start, end: (end - start) * 1e-6, lambda: forgotten.append(1))
    times_us = clock.time_kernels(run, seconds=0)
    assert times_us == {"k": pytest.approx(2)} and len(forgotten) == 4


def test_the_users_own_data_is_what_is_timed(built, monkeypatch):
    report, x = built
    seen: list[dict[str, np.ndarray]] = []

    def check(_bundle: Path, name: str, _source: object, _signature: object, samples: list, *_: object) -> VariantCheck:
        seen.extend(samples)
        return VariantCheck(name)

    monkeypatch.setattr("tvmbridge.verify.variant._check", check)
    model = tvmbridge.import_onnx(models.mlp("batch"), dims={"batch": 5})
    name = model.signature.inputs[0].name
    check_variants(report.output, model.source, inputs={name: x})
    assert len(seen) > 1
    np.testing.assert_array_equal(seen[0][name], x)


def test_a_build_says_what_each_kernel_takes(built):
    (outcome,) = built[0].outcomes
    assert outcome.check.threads == 1
    assert {kernel.key for kernel in outcome.shares} == {plan.kernel.key for plan in outcome.kernels}
    assert sum(kernel.share for kernel in outcome.shares) == pytest.approx(1.0)
    totals = [kernel.total_us for kernel in outcome.shares]
    assert totals == sorted(totals, reverse=True)


def run_peak_kernel(function: tvm.tirx.PrimFunc, *arrays: np.ndarray) -> list[np.ndarray]:
    main = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target="llvm").mod["main"]
    tensors = [tvm.runtime.tensor(array.astype(np.float32)) for array in arrays]
    main(*tensors)
    return [tensor.numpy() for tensor in tensors]


def test_the_multiply_adds_of_the_peak_are_all_done():
    _, sums = run_peak_kernel(_multiply_adds(2, 3, 4), np.array([0.9995, 0.001]), np.full(2 * 3 * 4, np.nan))
    np.testing.assert_allclose(sums, 2.0, rtol=1e-3)  # where x = 0.9995 x + 0.001 leads


def test_the_stream_of_the_peak_reads_and_writes_every_element():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 2 * 37 * 8)).astype(np.float32)
    _, _, c = run_peak_kernel(_triad(2, 37, 8), a, b, np.full(a.size, np.nan))
    np.testing.assert_allclose(c, a + 3 * b, rtol=1e-5, atol=1e-6)


def test_a_peak_that_cannot_be_measured_says_why(monkeypatch, tmp_path):
    Path(tmp_path, "tvm.py").write_text("raise ImportError('libnothing.so is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(TuningError, match=r"peak failed with status 1: ImportError: libnothing\.so is missing"):
        measure_peak(NATIVE, 1)


@T.prim_func(s_tir=True)
def needs_one_thread(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("needs_one_thread"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        assert T.call_packed("runtime.NumThreads") == 1, "more than one thread"
        b[0] = a[0]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_is_timed_on_as_many_threads_as_asked_for(threads):
    kernel = lower_function(needs_one_thread)
    template = fitting_templates(kernel, NATIVE)[-1]
    candidate = Candidate(kernel, template, template.configs(kernel, NATIVE)[0])
    with LocalMeasurer([kernel], NATIVE, seed=0, threads=threads) as measurer:
        (record,) = measurer.measure([(candidate, None)])
    assert (record.error is None) == (threads == 1), record


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured: the peak is PEAK, kernels take 30, 20 and 40 µs alone, those called "broken" fail."""

    def measure(_self: LocalMeasurer, batch: list[tuple[Candidate, float | None]]) -> list[TrialRecord]:
        return [
            TrialRecord(
                candidate.kernel.key,
                NATIVE.key,
                candidate.template.name,
                candidate.template.version,
                candidate.config,
                () if candidate.kernel.name == "broken" else (30.0, 20.0, 40.0),
                "it broke" if candidate.kernel.name == "broken" else None,
                tvm.__version__,
                0,
                "2026-01-31T09:00:00Z",
            )
            for candidate, _ in batch
        ]

    monkeypatch.setattr("tvmbridge.profiling.kernels.measure_peak", lambda *_: PEAK)
    monkeypatch.setattr(LocalMeasurer, "_start", lambda _: None)
    monkeypatch.setattr(LocalMeasurer, "measure", measure)


def test_a_profile_joins_times_in_the_network_and_alone_with_the_work(measured):
    plans = [plan(name, "default", unknown_rows() if name == "rows" else doubled()) for name in ("broken", "rows", "k")]
    steps: list[tuple[int, int]] = []
    profile = profile_kernels(
        plans,
        {"broken": 100.0, "rows": 300.0, "k": 200.0, "sort": 400.0},
        NATIVE,
        threads=3,
        on_progress=lambda *step: steps.append(step),
    )
    assert [(k.name, k.call_us, k.alone_us, k.flops, k.size_bytes) for k in profile.kernels] == [
        ("rows", 150.0, None, None, None),
        ("k", 100.0, 20.0, 64 * 3, 8 * 64 * 3),
        ("broken", 50.0, None, 64 * 3, 8 * 64 * 3),
    ]
    assert (profile.threads, profile.peak, profile.runtime_us) == (3, PEAK, {"sort": 400.0})
    assert steps == [(2, 2)]


def test_kernels_are_timed_in_batches_so_that_progress_is_seen(measured):
    plans = [plan(f"k{index}", "default", doubled()) for index in range(19)]
    steps: list[tuple[int, int]] = []
    profile = profile_kernels(plans, {}, NATIVE, threads=1, on_progress=lambda *step: steps.append(step))
    assert steps == [(8, 19), (16, 19), (19, 19)]
    assert all(kernel.alone_us == 20.0 and kernel.total_us == 0.0 for kernel in profile.kernels)
