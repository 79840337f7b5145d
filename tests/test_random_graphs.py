"""Random graphs: what is drawn proves something, what goes wrong is found, and none goes wrong."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from onnx import helper

from tests.random_graphs.choices import SeededChoices
from tests.random_graphs.conditioning import differs, why_ill
from tests.random_graphs.draw import Drawn, draw_seeded, graphs
from tests.random_graphs.fault import find_fault
from tests.random_graphs.files import read_graph, write_graph
from tests.random_graphs.graph import Graph, Rejected
from tests.random_graphs.judge import AGREES, FAILURE, MISMATCH, REFERENCE, REFUSED, UNDRAWN, Verdict, cause
from tests.random_graphs.reference import Reference, make_model
from tests.random_graphs.shrink import shrink
from tests.random_graphs.worker import Worker


@pytest.fixture(scope="module")
def worker():
    with Worker() as worker:
        yield worker


def test_a_seed_and_a_number_always_give_the_same_graph():
    first, again, other = draw_seeded(5, 0), draw_seeded(5, 0), draw_seeded(5, 1)
    assert first.model == again.model and first.model != other.model
    assert all(np.array_equal(first.feeds[name], again.feeds[name], equal_nan=True) for name in first.feeds)


def test_graphs_are_valid_models_of_many_operators_and_op_sets():
    drawn = [draw_seeded(6, index) for index in range(150)]
    for each in drawn:
        onnx.checker.check_model(each.model, full_check=True)
        assert all(
            differs(value, Reference(each.model).run(each.feeds)[name]) is None for name, value in each.expected.items()
        )
    assert len({kind for each in drawn for kind in each.operators}) > 100
    assert len({each.model.opset_import[0].version for each in drawn}) > 12


def test_what_rounding_decides_is_not_drawn():
    graph = Graph(SeededChoices(1), 17, 1)
    x = graph.feed(np.array([0.5, 1.25, 3.125], "float32") / 3)
    y = graph.op("Mul", [graph.op("Exp", [x]), x])
    with pytest.raises(Rejected, match="ill-conditioned"):
        graph.op("Sub", [y, graph.op("Mul", [x, graph.op("Exp", [x])])])
    with pytest.raises(Rejected, match="rounding decides"):
        graph.op("Equal", [y, graph.op("Mul", [x, graph.op("Exp", [x])])])
    assert graph.op("Less", [y, graph.scalar(7, "float32")]).value.all()


def test_whole_numbers_are_exact_where_every_program_computes_them_alike():
    graph = Graph(SeededChoices(1), 17, 1)
    x = graph.feed(np.array([[1, -2], [3, 5]], "float32"))
    product = graph.op("MatMul", [x, x])
    assert graph.op("Equal", [product, graph.scalar(-5, "float32")]).value.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    ("value", "moved", "why"),
    [
        (np.array([1.0, np.nan], "float32"), np.array([1.0, np.nan], "float32"), "not finite"),
        (np.array([3], "int32"), np.array([4], "int32"), "rounding decides"),
        (np.array([1e9], "float32"), np.array([1e9], "float32"), "large numbers"),
        (np.array([1.0, 2.0], "float32"), np.array([1.0, 2.001], "float32"), "ill-conditioned"),
        (np.array([1.0, 2.0], "float32"), np.array([1.0, 2.00001], "float32"), None),
    ],
)
def test_a_result_that_proves_nothing_is_known(value, moved, why):
    assert why_ill(value, moved, specials=False) == why


@pytest.mark.parametrize(
    ("actual", "says"),
    [
        (np.array([1.0, 2.1, 3.0], "float32"), "1 of 3 elements"),
        (np.array([1.0, 2.0], "float32"), "shape"),
        (np.array([1.0, 2.0, 3.0], "float64"), "dtype"),
        (np.array([1.0, np.nan, 3.0], "float32"), "NaN"),
    ],
)
def test_a_wrong_output_is_seen(actual, says):
    reference = np.array([1.0, 2.0, 3.0], "float32")
    assert says in (differs(reference, actual) or "")
    assert differs(reference, reference + np.float32(1e-5)) is None


def test_a_graph_comes_back_from_its_files(tmp_path):
    drawn = draw_seeded(7, 3)
    write_graph(drawn, tmp_path)
    read = read_graph(tmp_path)
    assert read.model == drawn.model
    assert all(np.array_equal(read.feeds[name], value, equal_nan=True) for name, value in drawn.feeds.items())
    assert list(read.expected) == list(drawn.expected)


def test_shrinking_ends_at_the_one_operator_that_is_wrong():
    drawn = next(each for each in (draw_seeded(8, i) for i in range(500)) if "Softmax" in each.operators[2:-2])
    small = shrink(drawn, lambda each: "Softmax" in each.operators)
    assert [kind for kind in small.operators if kind != "Constant"] == ["Softmax"]


def test_refusals_of_a_kind_are_counted_together():
    shape = [Verdict(REFUSED, f"t: the shape that Compress '{name}' gives is unknown") for name in ("a_1", "b_2")]
    assert cause(shape[0]) == cause(shape[1])
    assert cause(Verdict(REFUSED, "…", ("LSTM", "GRU", "LSTM"))) == "operators GRU, LSTM"


def test_a_crash_is_a_failure_and_the_next_graph_has_a_new_process(monkeypatch):
    program = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
    started = []

    def start(_worker):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", program], text=True, bufsize=1, **pipes))
        return started[-1]

    monkeypatch.setattr(Worker, "_start", start)
    with Worker() as worker:
        verdicts = [worker.judge_seeded(1, index)[0] for index in range(2)]
        verdicts.append(worker.judge(draw_seeded(1, 0)))
    assert verdicts == [Verdict(UNDRAWN, "crash: killed by SIGSEGV")] * 2 + [
        Verdict(FAILURE, "crash: killed by SIGSEGV")
    ]
    assert len(started) == 3 and all(process.returncode == -signal.SIGSEGV for process in started)


@pytest.mark.slow
def test_a_wrong_expectation_is_a_mismatch_and_a_missing_operator_a_refusal(worker):
    x = np.arange(6, dtype="float32").reshape(2, 3)
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": x}, {}, {"y": x}, 17)
    assert worker.judge(Drawn(model, {"x": x}, {"y": x})) == Verdict(AGREES)
    assert worker.judge(Drawn(model, {"x": x}, {"y": x + 1})).kind == MISMATCH
    model.graph.node[0].op_type = "NoSuchOperator"
    assert worker.judge(Drawn(model, {"x": x}, {"y": x})).kind == REFUSED


def make_drawn(nodes: list[onnx.NodeProto], x: np.ndarray, outputs: tuple[str, ...]) -> Drawn:
    """A graph whose outputs have the shape and dtype of its input."""
    model = make_model(nodes, {"x": x}, {}, dict.fromkeys(outputs, x), 17)
    return Drawn(model, {"x": x}, Reference(model).run({"x": x}))


def test_a_graph_is_wrong_where_onnx_runtime_and_the_reference_agree(monkeypatch):
    monkeypatch.setattr(Worker, "judge", lambda *_: Verdict(MISMATCH, "y: differs"))
    drawn = make_drawn([helper.make_node("Neg", ["x"], ["y"])], np.array([1.0, 2.0], "float32"), ("y",))
    with Worker() as worker:
        fault = find_fault(worker, drawn, Verdict(MISMATCH, "y: differs"))
    assert fault.verdict == Verdict(MISMATCH, "y: differs")
    assert fault.opinion == "onnx's reference agrees with ONNX Runtime"


def test_the_rest_of_a_graph_is_judged_where_the_reference_excuses_a_part(monkeypatch):
    """Of a worker that computes no Sign of NaN as ONNX Runtime does, and no Neg at all."""
    triples = (("Sign", ["x"], ["s"]), ("Abs", ["s"], ["a"]), ("Neg", ["a"], ["n"]))
    nodes = [helper.make_node(*each) for each in triples]
    x = np.array([np.nan, -2.0, 3.0], "float16")
    drawn = make_drawn(nodes, x, ("s", "n"))

    def judge(_worker: Worker, each: Drawn) -> Verdict:
        is_nan = "s" in each.expected and np.isnan(each.expected["s"][0])
        wrong = "Neg" in each.operators or ("s" in each.expected and not is_nan)
        return Verdict(MISMATCH, "differs") if wrong else Verdict(AGREES)

    monkeypatch.setattr(Worker, "judge", judge)
    with Worker() as worker:
        fault = find_fault(worker, drawn, Verdict(MISMATCH, "differs"))
        assert fault.verdict.kind == MISMATCH and fault.small.operators == ("Neg",)
        alone = make_drawn(nodes[:1], x, ("s",))
        assert find_fault(worker, alone, Verdict(MISMATCH, "differs")).verdict == Verdict(REFERENCE, "differs")


@pytest.mark.slow
def test_what_onnx_leaves_open_may_be_what_its_reference_gives(worker):
    """The sign of NaN: NaN in onnx's reference, and in ONNX Runtime too, but for float16, of which it gives 0."""
    x = np.array([np.nan, -2.0, 0.0, 3.0], "float16")
    nodes = [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Sign", ["x"], ["y"])]
    drawn = make_drawn(nodes, x, ("minus", "y"))
    verdict = worker.judge(drawn)
    fault = find_fault(worker, drawn, verdict)
    assert drawn.expected["y"][0] == 0 and verdict.kind == MISMATCH
    assert fault.verdict == Verdict(REFERENCE, verdict.why) and fault.small.operators == ("Sign",)


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=graphs())
def test_random_graphs_give_what_onnx_runtime_or_the_reference_gives(worker, drawn):
    verdict = worker.judge(drawn)
    fault = find_fault(worker, drawn, verdict) if verdict.is_wrong else None
    event(fault.verdict.kind if fault else verdict.kind)
    assert not fault or not fault.verdict.is_wrong, str(fault)
