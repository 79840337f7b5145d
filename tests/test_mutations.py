"""Models that are broken or hostile: import, build and run end in a result or an error of ours, within limits."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.mutations import hostile
from tests.mutations.bases import small_models
from tests.mutations.campaign import mutate
from tests.mutations.trial import Bench, try_model
from tests.onnx_models import FLOAT, model, value
from tvmbridge.errors import ModelError
from tvmbridge.frontend.infer import infer_shapes
from tvmbridge.frontend.sizes import check_expansion, check_sizes, makes_large_constants
from tvmbridge.frontend.tensor_bytes import check_tensor_bytes

CRASH_ONNX = (hostile.an_axis_past_all_counting, hostile.batch_dimensions_below_zero)
CRASH_ONNX += (hostile.a_split_into_more_than_there_is,)
LONG = (hostile.loops_in_loops, hostile.a_long_chain, hostile.a_wide_sum)  # the campaign has them


@pytest.fixture(scope="module")
def bench():
    with Bench() as bench:
        yield bench


@pytest.mark.parametrize("make", CRASH_ONNX, ids=lambda make: make.__name__)
def test_attributes_that_crash_the_shape_inference_never_reach_it(make):
    with pytest.raises(ModelError, match="the model is damaged"):
        infer_shapes(make())


@pytest.mark.parametrize("make", [hostile.a_constant_of_terabytes, hostile.a_range_of_terabytes])
def test_a_tensor_past_all_memory_is_refused_with_the_node_that_makes_it(make):
    with pytest.raises(ModelError, match=r"'huge', made by .* would take"):
        check_sizes(onnx.shape_inference.infer_shapes(make(), data_prop=True))


def test_functions_that_double_are_counted_and_not_written_out():
    with pytest.raises(ModelError, match=r"2\.2e\+12 operators|1\.1e\+12 operators"):
        check_expansion(hostile.functions_that_double(), "model")


@pytest.mark.parametrize("make", hostile.LARGE[:4], ids=lambda make: make.__name__)
def test_constants_that_would_grow_large_are_seen_before_anyone_computes_them(make):
    assert makes_large_constants(onnx.shape_inference.infer_shapes(make(), data_prop=True))


def test_a_large_weight_alone_is_no_constant_that_grows():
    graph = model(
        [helper.make_node("Neg", ["w"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])],
        [value("x", (2,))],
        [value("y", None)],
        {"w": np.ones(2, np.float32)},
    )
    assert not makes_large_constants(onnx.shape_inference.infer_shapes(graph))


@pytest.mark.parametrize(
    ("dtype", "field", "count"),
    [(FLOAT, "float_data", 3), (onnx.TensorProto.INT4, "int32_data", 2), (onnx.TensorProto.COMPLEX64, "float_data", 6)],
)
def test_a_tensor_with_too_few_or_too_many_values_is_refused(dtype, field, count):
    graph = model([helper.make_node("Relu", ["x"], ["y"])], [value("x", (2,))], [value("y", None)])
    for given in (count - 1, count, count + 1):
        del graph.graph.initializer[:]
        tensor = graph.graph.initializer.add(name="w", data_type=dtype, dims=[3])
        getattr(tensor, field).extend([1] * given)
        if given == count:
            check_tensor_bytes(graph, "model")
        else:
            with pytest.raises(ModelError, match=f"holds {given} values instead of {count}"):
                check_tensor_bytes(graph, "model")


@pytest.mark.compiler
@pytest.mark.parametrize("make", [m for m in hostile.HOSTILE if m not in LONG], ids=lambda make: make.__name__)
def test_a_hostile_model_is_refused_or_runs(make, bench):
    outcome = bench.try_model(make().SerializeToString())
    assert not outcome.is_bad, outcome


@pytest.mark.compiler
@pytest.mark.parametrize("make", hostile.LARGE, ids=lambda make: make.__name__)
def test_the_import_of_a_model_does_not_compute_its_gigabytes(make, bench):
    outcome = bench.try_model(make().SerializeToString(), build=False)
    assert outcome.kind == "imported", outcome
    assert outcome.grown_bytes < 3 << 29


@pytest.mark.slow
def test_no_mutant_of_a_seeded_campaign_ends_badly(bench):
    bases = small_models()
    made = [mutate(bases, 7, index) for index in range(60)]
    outcomes = [(named, bench.try_model(data)) for data, named in made]
    assert [(named, outcome) for named, outcome in outcomes if outcome.is_bad] == []
    assert {outcome.kind for _, outcome in outcomes} >= {"refused", "ran"}


@pytest.mark.slow
def test_a_campaign_sees_a_crash_a_hang_and_a_foreign_error(monkeypatch):
    from tests.mutations import trial

    data = small_models()[0][0].SerializeToString()

    def hang(_path):
        while True:
            pass

    def grow(_path):
        return [bytearray(b"x" * (1 << 28)) for _ in range(64)]

    for instead, kind in ((lambda _: ctypes.string_at(0), "crash"), (lambda _: {}["nothing"], "foreign")):
        monkeypatch.setattr(trial, "import_onnx", instead)
        assert try_model(data).kind == kind
    with monkeypatch.context() as patched:
        patched.setattr(trial, "GROWTH_BYTES", 1 << 30)
        patched.setattr(trial, "import_onnx", grow)
        assert try_model(data).kind == "memory"
    monkeypatch.setattr(trial, "CPU_S", 1)
    monkeypatch.setattr(trial, "import_onnx", hang)
    assert try_model(data).kind == "time"
