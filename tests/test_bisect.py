"""The search for the first wrong operator, with programs that are wrong on purpose in the place of the compiled one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tests.onnx_models as models
from tvmbridge.bisect import bisect_model
from tvmbridge.bisect.reproduction import describe, require_folder, write_reproduction
from tvmbridge.errors import CompileError, ModelError, OutputError, ShapeError
from tvmbridge.targets import parse_preset
from tvmbridge.verify.reference import ReferenceSession

TARGET = parse_preset("x86:x86-64-v3")


def chain(length: int) -> onnx.ModelProto:
    """x [3, 5] → y through `length` nodes named n0, n1, …, each a function of the one before and of the first."""
    kinds = ("Neg", "Add", "Abs", "Sub", "Elu")
    nodes, last = [], "x"
    for i in range(length):
        kind, made = kinds[i % len(kinds)], "y" if i == length - 1 else f"/t{i}"
        operands = [last, "/t0"] if kind in ("Add", "Sub") else [last]
        nodes.append(helper.make_node(kind, operands, [made], name=f"n{i}"))
        last = made
    return models.model(nodes, [models.value("x", (3, 5))], [models.value("y", (3, 5))])


def run(model, feeds):
    return ReferenceSession(model).run(feeds)


def scaling(*names, by=1.1):
    """A program in which the nodes of these names give too much."""

    def run_scaled(model, feeds):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        del changed.graph.node[:]
        changed.graph.initializer.append(numpy_helper.from_array(np.array(by, np.float32), "by"))
        for node in model.graph.node:
            changed.graph.node.append(node)
            if node.name in names:
                changed.graph.node[-1].output[0] = f"{node.output[0]} right"
                changed.graph.node.append(helper.make_node("Mul", [f"{node.output[0]} right", "by"], node.output[:1]))
        return run(changed, feeds)

    return run_scaled


def failing(name):
    def run_failing(model, feeds):
        if any(node.name == name for node in model.graph.node):
            raise CompileError(f"no code for {name}")
        return run(model, feeds)

    return run_failing


def find(model, program, **options):
    return bisect_model(model, TARGET, run=program, **options)


def names(finding):
    return [node.name for node in finding.part.nodes]


def test_a_right_program_has_no_finding():
    report = find(chain(7), run)
    assert report.finding is None and report.whole.status == "right"


@pytest.mark.parametrize("length", [1, 2, 7, 23])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_the_wrong_node_is_found_wherever_it_is(length, where):
    wrong = f"n{round(where * (length - 1))}"
    finding = find(chain(length), scaling(wrong)).finding
    assert finding.kind == "node" and names(finding) == [wrong]
    assert finding.check.status == "differs" and finding.check.outputs[0].max_relative == pytest.approx(0.1, rel=0.01)


def test_of_two_wrong_nodes_the_first_is_found():
    assert names(find(chain(23), scaling("n17", "n5")).finding) == ["n5"]


@pytest.mark.parametrize("wrong", ["n0", "n11", "n22"])
def test_the_search_takes_a_logarithm_of_tries(wrong):
    tries = []
    find(chain(23), scaling(wrong), on_check=lambda part, check: tries.append(check.status))
    assert len(tries) <= 1 + 5 + 1


@pytest.mark.parametrize("length", [1, 7, 23])
def test_a_node_that_does_not_compile_is_found(length):
    wrong = f"n{length // 2}"
    report = find(chain(length), failing(wrong))
    assert report.whole.status == "fails" and report.finding.kind == "node"
    assert names(report.finding) == [wrong]
    assert report.finding.check.problem == f"CompileError: no code for {wrong}"


def test_nodes_that_are_wrong_only_together_are_found_together():
    def fused(model, feeds):
        nodes, shown = list(model.graph.node), {entry.name for entry in model.graph.output}
        inside = {node.name: node.output[0] for node in nodes}
        together = "n8" in inside and "n9" in inside and inside["n8"] not in shown
        return scaling("n9")(model, feeds) if together else run(model, feeds)

    finding = find(chain(17), fused).finding
    assert finding.kind == "together" and names(finding) == ["n8", "n9"]


def test_rounding_that_adds_up_is_no_fault_of_any_node():
    program = scaling(*(f"n{i}" for i in range(23)), by=1 + 4e-5)
    report = find(chain(23), program, tolerance=1e-4)
    assert report.whole.status == "differs" and report.finding.kind == "rounding"
    assert len(report.finding.part.nodes) > 1


def test_a_node_that_is_wrong_only_on_what_it_is_given_is_found_with_that():
    graph, exact = chain(9), []

    def sensitive(model, feeds):
        """n3 adds a little, within tolerance, and n6 is far off where it sees anything of that."""
        names = [node.name for node in model.graph.node]
        if not exact:
            shown = onnx.ModelProto()
            shown.CopyFrom(graph)
            shown.graph.output.append(models.value("/t5", (3, 5)))
            exact.append(run(shown, feeds)["/t5"])
        if "n3" in names or ("/t5" in feeds and not np.array_equal(feeds["/t5"], exact[0])):
            rest = scaling("n3", by=1 + 2e-5)(model, feeds)
            return rest | {n: v for n, v in scaling("n6", by=1.5)(model, feeds).items() if "n6" in names and n != "/t5"}
        return run(model, feeds)

    finding = find(graph, sensitive).finding
    assert finding.kind == "node" and names(finding) == ["n6"]
    assert not np.array_equal(finding.part.feeds["/t5"], exact[0])
    assert finding.check.status == "differs"


def test_nan_and_infinity_are_differences_only_where_the_reference_has_none():
    nodes = [
        helper.make_node("Sqrt", ["x"], ["s"], name="sqrt"),
        helper.make_node("Log", ["s"], ["l"], name="log"),
        helper.make_node("Relu", ["l"], ["y"], name="relu"),
    ]
    graph = models.model(nodes, [models.value("x", (7,))], [models.value("y", (7,))])
    assert find(graph, run).finding is None
    poisoned = scaling("log", by=np.nan)
    finding = find(graph, poisoned).finding
    assert names(finding) == ["log"] and "NaN" in finding.check.outputs[0].mismatch


def test_shape_arithmetic_is_part_of_no_cut_and_constant_in_the_part():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Shape", ["r"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "order"], ["g"], name="turn"),
        helper.make_node("Reshape", ["r", "g"], ["y"], name="reshape"),
    ]
    weights = {"order": np.array([1, 0])}
    graph = models.model(nodes, [models.value("x", ("n", 5))], [models.value("y", None)], weights)
    finding = find(graph, scaling("reshape"), shapes={"x": (3, 5)}).finding
    assert names(finding) == ["reshape"] and list(finding.part.feeds) == ["r"]
    assert [(spec.name, spec.shape) for spec in finding.inputs] == [("r", (3, 5)), ("g", (2,))]
    np.testing.assert_array_equal(numpy_helper.to_array(finding.part.model.graph.initializer[0]), [5, 3])


def test_wrong_shape_arithmetic_is_found_by_itself():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Cast", ["s"], ["c"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "c"], ["y"], name="mul"),
    ]
    graph = models.model(nodes, [models.value("x", (5, 2))], [models.value("y", (5, 2))])
    finding = find(graph, scaling("cast")).finding
    assert names(finding) == ["cast"] and finding.check.status == "differs" and not finding.part.feeds


def test_what_branches_read_from_around_them_comes_with_them():
    bodies = {
        "then_branch": helper.make_node("Add", ["a", "w"], ["t"], name="inner"),
        "else_branch": helper.make_node("Sub", ["a", "w"], ["e"]),
    }
    made = {
        key: helper.make_graph([node], key, [], [models.value(node.output[0], (3,))]) for key, node in bodies.items()
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("If", ["c"], ["y"], name="if", **made),
    ]
    inputs = [models.value("x", (3,)), models.value("c", (), TensorProto.BOOL)]
    graph = models.model(nodes, inputs, [models.value("y", (3,))], {"w": models.random_weight((3,))})
    finding = find(graph, scaling("if")).finding
    assert names(finding) == ["if"] and sorted(finding.part.feeds) == ["a", "c"]
    assert [tensor.name for tensor in finding.part.model.graph.initializer] == ["w"]


def test_a_sequence_between_nodes_is_never_cut():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("SplitToSequence", ["a"], ["parts"], name="split", axis=0, keepdims=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["b"], name="join", axis=1),
        helper.make_node("Neg", ["b"], ["y"], name="neg"),
    ]
    graph = models.model(nodes, [models.value("x", (3, 5))], [models.value("y", (1, 15))])
    finding = find(graph, scaling("join")).finding
    assert finding.kind == "node" and names(finding) == ["split", "join"]
    assert names(find(graph, failing("split")).finding) == ["split", "join"]


def test_a_local_function_is_searched_inside():
    def wrong_second_product(model, feeds):
        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        for node in marked.graph.node:
            node.name = "wrong" if node.op_type == "MatMul" and node.input[0] != "x" else node.name
        return scaling("wrong")(marked, feeds) if products else run(model, feeds)

    finding = find(models.with_function(), wrong_second_product).finding
    assert [node.op_type for node in finding.part.nodes] == ["MatMul"]


def test_a_program_that_gives_other_shapes_dtypes_or_names_differs():
    def transposed(model, feeds):
        return {name: value.T for name, value in run(model, feeds).items()}

    def doubled(model, feeds):
        return {name: value.astype(np.float64) for name, value in run(model, feeds).items()}

    for program, word in ((transposed, "shape"), (doubled, "dtype"), (lambda *_: {}, "does not give it")):
        finding = find(chain(4), program).finding
        assert names(finding) == ["n0"] and word in finding.check.outputs[0].mismatch


def test_given_inputs_are_the_ones_that_are_compared(tmp_path):
    def wrong_above_100(model, feeds):
        large = max(float(np.max(np.abs(value))) for value in feeds.values()) > 100
        return scaling("n0" if large else "")(model, feeds)

    assert find(chain(3), wrong_above_100).finding is None
    np.savez(tmp_path / "in.npz", x=np.full((3, 5), 101, np.float32) + np.arange(5, dtype=np.float32))
    finding = find(chain(3), wrong_above_100, inputs=tmp_path / "in.npz").finding
    assert names(finding) == ["n0"] and finding.part.feeds["x"].min() == 101


def test_the_written_files_show_the_finding_again(tmp_path):
    finding = find(chain(9), scaling("n4")).finding
    write_reproduction(finding, tmp_path / "again", "the command")
    note = (tmp_path / "again" / "finding.txt").read_text()
    assert "Elu 'n4' (op-set 17)" in note and "reads /t3: float32[3, 5]" in note and "the command" in note
    again = find(tmp_path / "again" / "model.onnx", scaling("n4"), inputs=tmp_path / "again" / "inputs.npz")
    assert names(again.finding) == ["n4"]
    with np.load(tmp_path / "again" / "expected.npz") as expected:
        np.testing.assert_array_equal(expected["/t4"], again.whole.expected["/t4"])
    write_reproduction(finding, tmp_path / "again", "the command")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(OutputError, match="other files"):
        require_folder(tmp_path)
    with pytest.raises(OutputError, match="no folder"):
        require_folder(tmp_path / "model.onnx")


def test_long_parts_are_described_by_their_ends():
    program = scaling(*(f"n{i}" for i in range(40)), by=1 + 2e-5)
    text = describe(find(chain(40), program, tolerance=2e-4).finding)
    assert " more, " in text and text.count("'n") == 7


def test_what_cannot_be_searched_is_an_error(tmp_path):
    same = models.model([], [models.value("x", (3,))], [models.value("x", (3,))])
    with pytest.raises(ModelError, match="nothing to search"):
        find(same, run)
    with pytest.raises(ShapeError, match="--dim batch=1"):
        find(models.mlp("batch"), run)
