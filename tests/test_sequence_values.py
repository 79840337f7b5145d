"""Sequences and optionals among a model's inputs and outputs: lists in the ONNX backend, tensors everywhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvmbridge import backend
from tvmbridge.errors import ModelError, ShapeError
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

FLOAT = TensorProto.FLOAT


def sequence(name: str, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, FLOAT, shape)


def optional(name: str, held: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, helper.make_optional_type_proto(held))


def tensor(name: str, shape: list[int | str] | None = None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def make_model(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "sequences", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 18)])


def extended() -> onnx.ModelProto:
    """many → many with a tensor behind it, and that tensor doubled."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("SequenceInsert", ["many", "x"], ["more"]),
    ]
    return make_model(nodes, [sequence("many"), tensor("x", [3])], [sequence("more"), tensor("twice", [3])])


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(len(shapes))
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_a_sequence_goes_in_and_out_as_a_list_of_any_length_and_shapes():
    prepared = backend.prepare(extended())
    (x,) = arrays((3,))
    for many in ([], arrays((2, 5)), arrays((2,), (1, 7))):
        more, twice = prepared.run([many, x])
        assert isinstance(more, list) and len(more) == len(many) + 1
        for given, made in zip([*many, x], more, strict=True):
            np.testing.assert_array_equal(made, given)
        np.testing.assert_array_equal(twice, x + x)


def test_each_length_is_compiled_once():
    prepared = backend.prepare(extended())
    many, (x,) = arrays((2, 5)), arrays((3,))
    prepared.run([many, x])
    used = prepared.used
    prepared.run([[], x])
    assert prepared.used is not used
    prepared.run([many, x])
    assert prepared.used is used


@pytest.mark.parametrize("given", [True, False])
def test_an_optional_is_its_value_or_none(given):
    held = helper.make_tensor_type_proto(FLOAT, [3])
    there = helper.make_graph(
        [helper.make_node("OptionalGetElement", ["maybe"], ["got"])], "then", [], [tensor("got", [3])]
    )
    instead = helper.make_graph([helper.make_node("Neg", ["x"], ["negative"])], "else", [], [tensor("negative", [3])])
    nodes = [
        helper.make_node("OptionalHasElement", ["maybe"], ["has"]),
        helper.make_node("If", ["has"], ["y"], then_branch=there, else_branch=instead),
    ]
    model = make_model(nodes, [optional("maybe", held), tensor("x", [3])], [tensor("y", [3])])
    value, x = arrays((3,), (3,))
    (y,) = backend.run_model(model, [value if given else None, x])
    np.testing.assert_array_equal(y, value if given else -x)


def test_an_optional_output_is_what_it_holds():
    held = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [3]))
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["many"]), helper.make_node("Optional", ["many"], ["y"])]
    (x,) = arrays((3,))
    (y,) = backend.run_model(make_model(nodes, [tensor("x", [3])], [optional("y", held)]), [x])
    np.testing.assert_array_equal(y, [x, x])


def test_the_tensors_of_a_sequence_are_inputs_and_outputs_by_their_positions():
    imported = import_onnx(extended(), lengths={"many": 2}, shapes={"many[0]": (2, 5), "many[1]": (7,)})
    assert [(spec.name, spec.shape) for spec in imported.signature.inputs] == [
        ("many[0]", (2, 5)),
        ("many[1]", (7,)),
        ("x", (3,)),
    ]
    assert [spec.name for spec in imported.signature.outputs] == ["more[0]", "more[1]", "more[2]", "twice"]
    feeds = dict(zip(["many[0]", "many[1]", "x"], arrays((2, 5), (7,), (3,)), strict=True))
    expected = ReferenceSession(imported.source).run(feeds)
    np.testing.assert_array_equal(expected["more[1]"], feeds["many[1]"])


def test_a_negative_position_counts_from_the_last_tensor():
    nodes = [
        helper.make_node("Constant", [], ["last"], value_int=-1),
        helper.make_node("SequenceInsert", ["many", "x", "last"], ["more"]),
        helper.make_node("SequenceAt", ["more", "last"], ["y"]),
    ]
    model = make_model(nodes, [sequence("many", [3]), tensor("x", [3])], [tensor("y", [3]), sequence("more")])
    many, (x,) = arrays((3,), (3,)), arrays((3,))
    y, more = backend.run_model(model, [many, x])
    np.testing.assert_array_equal(more, [many[0], x, many[1]])
    np.testing.assert_array_equal(y, many[1])


def test_a_length_that_is_not_given_is_named():
    with pytest.raises(ShapeError, match="input 'many' is no tensor but a sequence, whose length") as caught:
        import_onnx(extended())
    assert caught.value.dimensions == ("many[...]",)


@pytest.mark.parametrize("lengths", [{"x": 1, "many": 1}, {"many": None}, {"more": 1, "many": 2}])
def test_a_length_of_something_else_is_refused(lengths):
    with pytest.raises(ShapeError):
        import_onnx(extended(), lengths=lengths)


def test_outputs_that_are_all_empty_are_refused():
    model = make_model([helper.make_node("SequenceEmpty", [], ["y"])], [tensor("x", [3])], [sequence("y")])
    with pytest.raises(ModelError, match="its outputs are empty sequences"):
        import_onnx(model)
