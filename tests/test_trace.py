"""The walk through a graph: what is known is decided, what is not is written down, what is wrong is named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import BOOL, FLOAT, INT64, model, one_node, value

from tests.mutations.hostile import loops_in_loops
from tvmbridge.errors import ModelError, UnsupportedOperatorError
from tvmbridge.frontend import import_onnx
from tvmbridge.frontend.operator import Operator

pytestmark = pytest.mark.compiler


def operators(graph) -> list[str]:
    """The names of the operators that main calls."""
    from tvm import relax

    found: list[str] = []

    def visit(expr):
        if isinstance(expr, relax.Call) and hasattr(expr.op, "name"):
            found.append(expr.op.name)

    relax.analysis.post_order_visit(import_onnx(graph).module["main"], visit)
    return found


def test_shape_arithmetic_leaves_no_operator_behind():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["rows"]),
        helper.make_node("Mul", ["rows", "two"], ["doubled"]),
        helper.make_node("Concat", ["doubled", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    assert operators(model(nodes, [value("x", (3, 8))], [value("y", None)], weights)) == ["relax.reshape"]


def test_an_operator_without_converter_is_traced_through_its_function_body():
    assert "relax.matmul" in operators(
        model(
            [helper.make_node("Attention", ["q", "k", "v"], ["y"])],
            [value(name, (2, 3, 4, 8)) for name in "qkv"],
            [value("y", (2, 3, 4, 8))],
            opset=23,
        )
    )


@pytest.mark.parametrize(("condition", "operator"), [(True, "relax.exp"), (False, "relax.tanh")])
def test_a_known_condition_decides_the_branch(condition, operator):
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["x"], [name])], name, [], [value(name, (2, 3))])
        for name, kind in (("then", "Exp"), ("else", "Tanh"))
    }
    node = helper.make_node("If", ["flag"], ["y"], **branches)
    graph = model([node], [value("x", (2, 3))], [value("y", (2, 3))], {"flag": np.array(condition)})
    assert operators(graph) == [operator]


def test_a_sequence_is_a_list_while_the_graph_is_traced():
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0, keepdims=0),
        helper.make_node("SequenceErase", ["parts", "first"], ["fewer"]),
        helper.make_node("SequenceAt", ["fewer", "last"], ["row"]),
        helper.make_node("SequenceLength", ["fewer"], ["count"]),
    ]
    weights = {"first": np.array(0), "last": np.array(-1)}
    outputs = [value("row", (5,)), value("count", (), INT64)]
    signature = import_onnx(model(nodes, [value("x", (3, 5))], outputs, weights)).signature
    assert [spec.shape for spec in signature.outputs] == [(5,), ()]


def test_a_result_that_onnx_infers_otherwise_is_refused(monkeypatch):
    from tvm import relax

    from tvmbridge.frontend import trace

    def wrong(op: Operator):
        return relax.op.astype(op.input(0), "float16")

    monkeypatch.setattr(trace, "find_converter", lambda op_type, _domain: wrong if op_type == "Tanh" else None)
    with pytest.raises(UnsupportedOperatorError, match=r"float16\[2, 3\], and in ONNX is float32\[2, 3\]"):
        import_onnx(one_node("Tanh"))


def test_no_warning_is_left_on_stderr_where_an_import_fails(capfd):
    with pytest.raises(ModelError):
        import_onnx(
            one_node("NonMaxSuppression", np.ones((1, 1, 5), np.float32), "count", shape=(1, 5, 4), result=INT64)
        )
    assert "Warning" not in capfd.readouterr().err


def test_an_input_without_elements_is_known():
    nodes = [helper.make_node("Concat", ["x", "nothing"], ["y"], axis=0)]
    graph = model(nodes, [value("x", (2, 3)), value("nothing", ("n", 3))], [value("y", None)])
    assert import_onnx(graph, shapes={"nothing": (0, 3)}).signature.outputs[0].shape == (2, 3)


def test_an_optional_without_a_value_as_output_is_refused():
    held = helper.make_tensor_type_proto(FLOAT, (2, 3))
    entry = helper.make_value_info("y", helper.make_optional_type_proto(held))
    with pytest.raises(ModelError, match="output 'y' is no optional with a value"):
        import_onnx(model([helper.make_node("Optional", [], ["y"], type=held)], [value("x", (2, 3))], [entry]))


def test_a_sparse_constant_is_its_dense_value():
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "v")
    indices = numpy_helper.from_array(np.array([1, 5]), "i")
    sparse = helper.make_sparse_tensor(values, indices, [2, 3])
    nodes = [helper.make_node("Constant", [], ["c"], sparse_value=sparse), helper.make_node("Add", ["x", "c"], ["y"])]
    assert operators(model(nodes, [value("x", (2, 3))], [value("y", (2, 3))])) == ["relax.add"]


def test_a_branch_that_the_run_decides_needs_equal_shapes():
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Slice", ["x", "zero", stop], [name])], name, [], [value(name, None)]
        )
        for name, stop in (("then", "one"), ("else", "two"))
    }
    node = helper.make_node("If", ["flag"], ["y"], **branches)
    weights = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    graph = model([node], [value("x", (2, 3)), value("flag", (), BOOL)], [onnx.ValueInfoProto(name="y")], weights)
    graph.graph.output[0].type.tensor_type.elem_type = FLOAT
    with pytest.raises(ModelError) as caught:
        import_onnx(graph)
    assert caught.value.inputs == ("flag",)


def test_a_loop_without_condition_and_state_is_unrolled():
    nodes = [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Neg", ["x"], ["each"])]
    takes = [value("i", (), INT64), value("ci", (), BOOL)]
    body = helper.make_graph(nodes, "body", takes, [value("co", (), BOOL), value("each", (2,))])
    graph = model(
        [helper.make_node("Loop", ["n", ""], ["y"], body=body)],
        [value("x", (2,))],
        [value("y", None)],
        {"n": np.array(3)},
    )
    assert import_onnx(graph).signature.outputs[0].shape == (3, 2)


def test_loops_in_loops_are_refused_when_they_unroll_into_too_much(monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace._MOST_IN_BODIES", 50)
    with pytest.raises(UnsupportedOperatorError, match="unroll into more than 50 nodes"):
        import_onnx(loops_in_loops(2))


def test_what_is_known_is_folded_until_a_gigabyte_is_made(monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace.fold._MOST_BYTES", 1 << 18)
    weights = {"w": np.ones(1 << 14, np.float32)}
    nodes = [helper.make_node("Neg", ["w" if not i else f"t{i}"], [f"t{i + 1}"]) for i in range(9)]
    nodes.append(helper.make_node("Add", ["x", "t9"], ["y"]))
    monkeypatch.setattr("tvmbridge.frontend.simplify", lambda graph: graph)
    calls = operators(model(nodes, [value("x", (1,))], [value("y", None)], weights))
    assert 1 < calls.count("relax.negative") < 9


def test_a_random_draw_from_a_constant_is_not_made_once_for_all():
    weights = {"p": np.full(3, 0.5, np.float32)}
    nodes = [helper.make_node("Bernoulli", ["p"], ["b"]), helper.make_node("Add", ["x", "b"], ["y"])]
    with pytest.raises(UnsupportedOperatorError, match="Bernoulli"):
        import_onnx(model(nodes, [value("x", (3,))], [value("y", None)], weights))


def test_a_loop_ends_after_its_last_trip_whatever_its_condition_says():
    nodes = [helper.make_node("ReduceMax", ["v"], ["m"], keepdims=0), helper.make_node("Less", ["m", "c"], ["go"])]
    nodes.append(helper.make_node("Neg", ["v"], ["w"]))
    takes = [value("i", (), INT64), value("ci", (), BOOL), value("v", (2,))]
    body = helper.make_graph(nodes, "body", takes, [value("go", (), BOOL), value("w", (2,))])
    weights = {"n": np.array(1), "c": np.array(3, np.float32)}
    graph = model(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], [value("x", (2,))], [value("y", None)], weights
    )
    assert operators(graph).count("relax.negative") == 1


@pytest.mark.parametrize(("count", "seen"), [(3, True), (1 << 40, False)])
def test_a_loop_that_cannot_be_unrolled_is_refused_before_it_is_tried(count, seen, monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace._MOST_IN_BODIES", 10)
    nodes = [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Neg", ["v"], ["w"])]
    takes = [value("i", (), INT64), value("ci", (), BOOL), value("v", (2,))]
    body = helper.make_graph(nodes, "body", takes, [value("co", (), BOOL), value("w", (2,))])
    weights = {"n": np.array(count)}
    graph = model(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], [value("x", (2,))], [value("y", None)], weights
    )
    if seen:
        assert operators(graph).count("relax.negative") == 3
    else:
        with pytest.raises(UnsupportedOperatorError, match="more than 1,000,000,000 times"):
            import_onnx(graph)
