"""import_onnx on models that it takes: what comes out computes what ONNX Runtime computes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_models import (
    BOOL,
    FLOAT,
    INT64,
    conv_bn_relu,
    embedding,
    mlp,
    model,
    old_opset,
    one_node,
    random_weight,
    two_outputs,
    value,
    with_function,
)

from tvmbridge import backend
from tvmbridge.frontend import ImportedModel, import_onnx
from tvmbridge.verify import random_inputs

pytestmark = pytest.mark.compiler


def run_in_tvm(imported: ImportedModel, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import tvm
    from tvm import relax

    executable = tvm.compile(imported.module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    results = machine["main"](*(tvm.runtime.tensor(feeds[spec.name]) for spec in imported.signature.inputs))
    if len(imported.signature.outputs) == 1:
        results = [results]
    return {spec.name: result.numpy() for spec, result in zip(imported.signature.outputs, results, strict=True)}


def run_in_reference(source: Path | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_imports_rightly(imported: ImportedModel) -> None:
    feeds = random_inputs(imported.source, imported.signature, seed=3)
    expected = run_in_reference(imported.source, feeds)
    actual = run_in_tvm(imported, feeds)
    assert list(actual) == [spec.name for spec in imported.signature.outputs] == list(expected)
    for spec in imported.signature.outputs:
        assert actual[spec.name].shape == expected[spec.name].shape == spec.shape
        assert actual[spec.name].dtype == expected[spec.name].dtype == np.dtype(spec.dtype)
        np.testing.assert_allclose(actual[spec.name], expected[spec.name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build", [conv_bn_relu, mlp, embedding, two_outputs, with_function, old_opset], ids=lambda build: build.__name__
)
def test_a_model_computes_what_the_reference_computes(build):
    assert_imports_rightly(import_onnx(build()))


def test_a_file_and_its_proto_give_the_same_module_and_signature(tmp_path):
    import tvm_ffi

    onnx.save(mlp(), tmp_path / "net.onnx")
    from_file, from_proto = import_onnx(tmp_path / "net.onnx"), import_onnx(mlp())
    assert from_file.name == "net" and from_proto.name == "small"
    assert from_file.source == tmp_path / "net.onnx"
    assert from_file.signature == from_proto.signature
    assert tvm_ffi.structural_equal(from_file.module, from_proto.module)


def test_a_symbolic_batch_is_bound_by_name_or_by_shape():
    by_name = import_onnx(conv_bn_relu("batch"), dims={"batch": 3})
    by_shape = import_onnx(conv_bn_relu("batch"), shapes={"x": (3, 3, 13, 11)})
    assert by_name.signature == by_shape.signature
    assert by_name.signature.inputs[0].shape == (3, 3, 13, 11)
    assert by_name.signature.outputs[0].shape == (3, 8)
    assert by_name.dims == {"batch": 3} and by_shape.shapes == {"x": (3, 3, 13, 11)}
    assert_imports_rightly(by_name)


def test_an_input_of_unknown_rank_is_bound_by_shape():
    free = model([helper.make_node("Neg", ["x"], ["y"])], [value("x", None)], [value("y", None)])
    assert_imports_rightly(import_onnx(free, shapes={"x": [2, 5]}))


def test_external_data_is_read_and_is_part_of_the_digest(tmp_path):
    path = tmp_path / "big.onnx"
    onnx.save(conv_bn_relu(), path, save_as_external_data=True, location="big.bin", size_threshold=0)
    imported = import_onnx(path)
    assert_imports_rightly(imported)
    data = bytearray((tmp_path / "big.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "big.bin").write_bytes(data)
    assert import_onnx(path).sha256 != imported.sha256


def test_batch_norm_is_folded_and_dead_nodes_are_dropped():
    with_dead = conv_bn_relu()
    with_dead.graph.node.append(helper.make_node("Exp", ["x"], ["unused"], name="dead"))
    script = import_onnx(with_dead).module.script()
    assert "batch_norm" not in script and "R.exp" not in script
    assert "conv2d" in script


def test_a_convolution_that_is_an_output_too_keeps_its_value():
    graph = conv_bn_relu()
    graph.graph.output.append(value("c", None))
    assert_imports_rightly(import_onnx(graph))


def test_sum_becomes_add_also_for_one_and_for_four_operands():
    for count in (1, 2, 4):
        names = [f"x{i}" for i in range(count)]
        summed = model(
            [helper.make_node("Sum", names, ["y"], name="sum")],
            [value(name, (3, 1) if i % 2 else (1, 5)) for i, name in enumerate(names)],
            [value("y", None)],
        )
        imported = import_onnx(summed)
        assert "stack" not in imported.module.script()
        assert_imports_rightly(imported)


@pytest.mark.parametrize(
    ("attribute", "content"), [("value_int", 3), ("value_ints", [1, 2]), ("value_float", 0.5), ("value_floats", [0.5])]
)
def test_a_constant_in_any_attribute_is_read(attribute, content):
    kind = FLOAT if "float" in attribute else INT64
    nodes = [
        helper.make_node("Constant", [], ["k"], **{attribute: content}),
        helper.make_node("Add", ["x", "k"], ["y"]),
    ]
    assert_imports_rightly(import_onnx(model(nodes, [value("x", (3, 2), kind)], [value("y", (3, 2), kind)])))


def test_an_output_may_be_an_input_or_a_constant():
    nodes = [
        helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.5]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    through = model(nodes, [value("x", (2, 3))], [value("x", (2, 3)), value("k", (2,)), value("y", (2, 3))])
    assert_imports_rightly(import_onnx(through))
    only = model(nodes[:1], [value("x", (2, 3))], [value("k", (2,))])
    assert_imports_rightly(import_onnx(only))
    weight = model(
        nodes[1:], [value("x", (2, 3))], [value("y", (2, 3)), value("w", (2, 2))], {"w": random_weight((2, 2))}
    )
    assert_imports_rightly(import_onnx(weight))


def test_an_unused_input_stays_in_the_signature_and_in_main():
    graph = model([helper.make_node("Relu", ["x"], ["y"])], [value("a", (1,)), value("x", (2,))], [value("y", (2,))])
    imported = import_onnx(graph)
    assert [spec.name for spec in imported.signature.inputs] == ["a", "x"]
    assert len(imported.module["main"].params) == 2
    assert_imports_rightly(imported)


def test_a_weight_listed_as_an_input_is_no_input():
    assert [spec.name for spec in import_onnx(old_opset()).signature.inputs] == ["x"]


@pytest.mark.parametrize(
    "names", [("a/b:0", "a.b"), ("a b", "a_b"), ("größe", "入力"), ("1", "2"), ("main", "def"), ("x\"'\\", "y\n")]
)
def test_odd_names_are_kept(names):
    first, second = names
    nodes = [helper.make_node("Sub", [first, second], ["out.1"]), helper.make_node("Neg", ["out.1"], ["out/1"])]
    inputs = [value(first, (2, 3)), value(second, (2, 3))]
    imported = import_onnx(model(nodes, inputs, [value("out.1", (2, 3)), value("out/1", (2, 3))]))
    assert [spec.name for spec in imported.signature.inputs] == [first, second]
    assert [spec.name for spec in imported.signature.outputs] == ["out.1", "out/1"]
    assert_imports_rightly(imported)


def test_a_proto_that_is_passed_in_stays_as_it_was():
    given = old_opset()
    before = given.SerializeToString(deterministic=True)
    imported = import_onnx(given)
    assert given.SerializeToString(deterministic=True) == before
    assert isinstance(imported.source, onnx.ModelProto) and imported.source is not given
    assert imported.source.SerializeToString(deterministic=True) == before


def test_shape_arithmetic_is_folded_once_the_shape_is_bound():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    graph = model(nodes, [value("x", ("n", 4, 6))], [value("y", None)], weights)
    imported = import_onnx(graph, dims={"n": 3})
    assert imported.signature.outputs[0].shape == (3, 24)
    assert_imports_rightly(imported)


def test_a_branch_that_is_decided_by_a_constant_is_imported():
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [value("t", (2, 3))])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [value("e", (2, 3))])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    imported = import_onnx(model([node], [value("x", (2, 3))], [value("y", (2, 3))], {"flag": np.array(False)}))
    assert_imports_rightly(imported)


@pytest.mark.parametrize("dtype", [FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, INT64, BOOL])
def test_every_usual_dtype_keeps_its_name(dtype):
    imported = import_onnx(one_node("Identity", dtype=dtype))
    expected = helper.tensor_dtype_to_np_dtype(dtype).name
    assert imported.signature.inputs[0].dtype == imported.signature.outputs[0].dtype == expected
    assert_imports_rightly(imported)


def test_importing_prints_nothing(capfd, caplog):
    with caplog.at_level(logging.WARNING):
        import_onnx(conv_bn_relu())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_source_is_absolute_and_a_name_that_is_no_text_is_cleaned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = os.fsdecode(b"m\xff.onnx")
    onnx.save(mlp(), file)
    imported = import_onnx(file)
    assert imported.name == "m?" and imported.name.encode()
    assert imported.source == tmp_path / file


@pytest.mark.compiler
def test_an_import_says_nothing_of_what_the_optimizer_leaves_alone(capfd, caplog):
    weights = {"first": np.ones(3, np.float32), "second": np.ones(3, np.float32)}
    node = helper.make_node("Add", ["x", "first"], ["y"], name="sum")
    outputs = [value("y", (2, 3)), value("second", (3,))]
    import_onnx(model([node], [value("x", (2, 3))], outputs, weights))
    assert not caplog.records
    assert capfd.readouterr().err == ""


@pytest.mark.compiler
def test_a_pad_of_an_old_op_set_may_have_a_value_that_its_mode_does_not_use():
    node = helper.make_node("Pad", ["x"], ["y"], mode="edge", pads=[0, 1, 1, 0], value=3.0)
    graph = model([node], [value("x", (2, 3))], [value("y", (3, 4))], opset=8)
    assert import_onnx(graph).signature.outputs[0].shape == (3, 4)


@pytest.mark.compiler
def test_a_value_that_the_optimizer_loses_is_kept():
    nodes = [helper.make_node(kind, ["x"], [kind]) for kind in ("Softmax", "LogSoftmax")]  # of op-set 9: Flatten, twice
    nodes.append(helper.make_node("Reshape", ["LogSoftmax", "shape"], ["y"]))
    outputs = [value("Softmax", (5, 2, 3)), value("y", (1, 1, 2, 15))]
    graph = model(nodes, [value("x", (5, 2, 3))], outputs, {"shape": np.array([1, 1, 2, 15])}, opset=9)
    for node in graph.graph.node[:2]:
        node.attribute.append(helper.make_attribute("axis", 0))
    assert [spec.shape for spec in import_onnx(graph).signature.outputs] == [(5, 2, 3), (1, 1, 2, 15)]


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE])
@pytest.mark.parametrize(
    ("op_type", "attributes", "expected"),
    [
        ("Pad", {"pads": [0, 1, 1, 0], "value": 0.5}, [[0.5, 1, 2, 3], [0.5, -4, 5, 6], [0.5, 0.5, 0.5, 0.5]]),
        ("Pad", {"pads": [0, 1, 0, 0]}, [[0, 1, 2, 3], [0, -4, 5, 6]]),
        ("Clip", {"min": -1.5, "max": 4.25}, [[1, 2, 3], [-1.5, 4.25, 4.25]]),
        ("Clip", {"min": 2.0}, [[2, 2, 3], [2, 5, 6]]),
    ],
)
def test_numbers_of_old_op_sets_take_the_type_of_the_data(op_type, attributes, expected, dtype):
    shape = np.shape(expected)
    node = helper.make_node(op_type, ["x"], ["y"], **attributes)
    graph = model([node], [value("x", (2, 3), dtype)], [value("y", shape, dtype)], opset=8)
    x = np.array([[1, 2, 3], [-4, 5, 6]], helper.tensor_dtype_to_np_dtype(dtype))
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], np.array(expected, x.dtype))
