"""The template for recurrent kernels: every config computes what the plain loops compute."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import assert_close, guess, plan, run_lowered, runnable_targets
from test_converters_recurrent import recurrent

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import Kernel, LoweredModel, lower
from tvmbridge.schedules import Config, Template
from tvmbridge.schedules.cpu.default import TEMPLATE as DEFAULT
from tvmbridge.schedules.cpu.recurrence import TEMPLATE
from tvmbridge.schedules.loops import costs
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")


def kernel_of(lowered: LoweredModel) -> Kernel:
    (kernel,) = (kernel for kernel in lowered.kernels if TEMPLATE.fits(kernel, NATIVE))
    return kernel


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_every_config_computes_what_onnx_runtime_computes(data):
    kind = data.draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    directions = data.draw(st.integers(1, 2))
    graph, feeds = recurrent(
        kind,
        directions=directions,
        direction="bidirectional" if directions == 2 else "forward",
        sequences=data.draw(st.sampled_from([1, 3])),
        units=data.draw(st.sampled_from([1, 7, 16, 53])),
        lengths=data.draw(st.sampled_from([None, "run"])),
        constant=data.draw(st.booleans()),
    )
    target = data.draw(st.sampled_from(runnable_targets()))
    target = msgspec.structs.replace(target, cores=data.draw(st.sampled_from([1, 2, 3])))
    if "lengths" in feeds:
        feeds["lengths"] = np.array([7, 3, 4][: len(feeds["lengths"])], np.int32)

    def choose(kernel: Kernel) -> tuple[Template, Config]:
        if not TEMPLATE.fits(kernel, target):
            return guess(kernel, target)
        return TEMPLATE, data.draw(st.sampled_from(TEMPLATE.configs(kernel, target)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "THREADS_NS", 0)
        outputs = run_lowered(lower(import_onnx(graph), target), target, list(feeds.values()), choose)
    expected = ReferenceSession(graph, threads=1).run(feeds)
    for entry, output in zip(graph.graph.output, outputs, strict=True):
        assert_close(output, expected[entry.name], 1e-5)


def test_the_plain_loops_are_a_schedule_too():
    graph, feeds = recurrent("GRU", linear_before_reset=1)
    lowered = lower(import_onnx(graph), NATIVE)

    def plain(kernel: Kernel) -> tuple[Template, Config]:
        recurs = TEMPLATE.fits(kernel, NATIVE)
        return (DEFAULT, DEFAULT.guess(kernel, NATIVE)) if recurs else guess(kernel, NATIVE)

    outputs = run_lowered(lowered, NATIVE, list(feeds.values()), plain)
    expected = ReferenceSession(graph, threads=1).run(feeds)
    for entry, output in zip(graph.graph.output, outputs, strict=True):
        assert_close(output, expected[entry.name], 1e-5)


def test_it_is_the_untuned_choice_and_packs_constant_weights():
    lowered = lower(import_onnx(recurrent("GRU")[0]), NATIVE)
    kernel = kernel_of(lowered)
    template, config = guess(kernel, NATIVE)
    assert template is TEMPLATE
    packings = plan(kernel, NATIVE, template, config).scheduled.packings
    assert {packing.parameter for packing in packings} == kernel.constants & {1, 2}
    assert len(packings) == 2  # of both products: a GRU resets its state between them


def test_it_takes_no_other_kernel():
    lowered = lower(import_onnx(recurrent("LSTM")[0]), NATIVE)
    assert [TEMPLATE.fits(kernel, NATIVE) for kernel in lowered.kernels].count(True) == 1
    assert len(lowered.kernels) > 1


@pytest.mark.parametrize(("sequences", "share"), [(1, "units"), (8, "sequences")])
def test_cores_share_the_sequences_where_there_are_enough(sequences, share):
    target = msgspec.structs.replace(NATIVE, cores=4)
    kernel = kernel_of(lower(import_onnx(recurrent("LSTM", sequences=sequences)[0]), target))
    assert TEMPLATE.guess(kernel, target)["share"] == share


@pytest.mark.parametrize("sequences", [1, 2, 13])
def test_the_sums_of_the_best_tile_fit_the_registers(sequences):
    for target in (NATIVE, parse_preset("x86:x86-64-v3"), parse_preset("arm:cortex-a72")):
        kernel = kernel_of(lower(import_onnx(recurrent("LSTM", sequences=sequences, units=64)[0]), target))
        config = TEMPLATE.guess(kernel, target)
        assert int(config["rows"]) * int(config["vectors"]) * 4 < target.vector_registers
