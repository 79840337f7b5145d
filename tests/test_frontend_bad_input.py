"""import_onnx on what it cannot take: one error of ours each, which says what, which and what to do."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import FLOAT, INT64, conv_bn_relu, mlp, model, one_node, random_weight, value

from tvmbridge.errors import ModelError, ModelFileError, ShapeError, UnboundValueError, UnsupportedOperatorError
from tvmbridge.frontend import converters, import_onnx


def refused(given_model, kind, *words, **bindings):
    with pytest.raises(kind) as caught:
        import_onnx(given_model, **bindings)
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_a_missing_file_is_refused_by_name(tmp_path):
    refused(tmp_path / "none.onnx", ModelFileError, "none.onnx", "no such file")


def test_a_folder_is_refused_and_what_it_holds_is_said(tmp_path):
    onnx.save(mlp(), tmp_path / "inside.onnx")
    refused(tmp_path, ModelFileError, "is a folder", "inside.onnx")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", ModelFileError, "pipe.onnx", "no regular file")
    refused("/dev/null", ModelFileError, "no regular file")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", ModelFileError, "empty.onnx is empty")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"PK\x03\x04rest", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (bytes(range(256)), "not an ONNX model"),
        (b"\x08\x08", "not an ONNX model"),
        (b"\x10\x00", "not an ONNX model"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, word):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, ModelFileError, "model.onnx", word)


def test_every_truncation_of_a_model_is_refused(tmp_path):
    data = mlp().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            import_onnx(path)


def test_a_file_past_the_limit_of_protobuf_is_refused_unread(tmp_path):
    path = tmp_path / "huge.onnx"
    path.touch()
    os.truncate(path, 2**31)
    refused(path, ModelFileError, "2147483648 bytes", "external data")


def test_a_name_that_is_no_text_is_refused():
    data = mlp().SerializeToString().replace(b"gemm1", b"ge\xff\xfe1")
    refused(onnx.ModelProto.FromString(data), ModelFileError, "not UTF-8")


def test_an_unreadable_path_is_refused():
    refused("a\0b.onnx", ModelFileError, "cannot be read")


def save_external(folder):
    path = folder / "net.onnx"
    onnx.save(conv_bn_relu(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    return path


def test_a_missing_external_file_is_refused_by_name(tmp_path):
    path = save_external(tmp_path)
    (tmp_path / "net.bin").unlink()
    refused(path, ModelFileError, "'net.bin' is missing", "tensor 'w'")


def test_a_truncated_external_file_is_refused(tmp_path):
    path = save_external(tmp_path)
    os.truncate(tmp_path / "net.bin", 100)
    refused(path, ModelFileError, "net.bin is truncated", "tensor 'w'")


@pytest.mark.parametrize("location", ["../net.bin", "/etc/passwd", "", "a/../../net.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    refused(path, ModelFileError, "outside the model's folder")


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder)
    (folder / "net.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "net.bin").symlink_to(tmp_path / "elsewhere.bin")
    refused(path, ModelFileError, "outside the model's folder")


@pytest.mark.parametrize(
    ("key", "claim"), [("offset", "-1"), ("length", "3"), ("length", "many"), ("offset", "9" * 15)]
)
def test_external_data_that_claims_another_range_is_refused(tmp_path, key, claim):
    path = save_external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    entry = next(entry for entry in proto.graph.initializer[0].external_data if entry.key == key)
    entry.value = claim
    path.write_bytes(proto.SerializeToString())
    refused(path, ModelFileError, "net")


def test_a_proto_that_refers_to_files_is_refused(tmp_path):
    proto = onnx.load(save_external(tmp_path), load_external_data=False)
    refused(proto, ModelFileError, "give the path")


def test_a_weight_with_too_few_bytes_is_refused():
    broken = mlp()
    broken.graph.initializer[0].raw_data = broken.graph.initializer[0].raw_data[:-4]
    refused(broken, ModelFileError, "'w1'", "2104 bytes instead of 2108")


def test_a_graph_that_reads_what_nothing_makes_is_refused():
    refused(
        model([helper.make_node("Relu", ["nowhere"], ["y"])], [value("x", (2,))], [value("y", (2,))]),
        ModelError,
        "malformed",
    )


def test_outputs_that_are_missing_or_twice_are_refused():
    relu = helper.make_node("Relu", ["x"], ["y"])
    refused(model([relu], [value("x", (2,))], []), ModelError, "no output")
    refused(model([relu], [value("x", (2,))], [value("y", (2,))] * 2), ModelError, "twice")


def test_an_op_set_from_the_future_is_refused():
    refused(one_node("Relu", opset=999), ModelError, "op-set 999")


def test_every_unbound_dimension_is_in_one_error_with_a_command_line():
    graph = model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [value("x", ("batch", 3, None)), value("z", ("batch", 1, "seq len")), value("free", None)],
        [value("y", None)],
    )
    error = refused(graph, ShapeError, "--shape x=1x3x1 --dim 'seq len'=1 --shape free=")
    assert error.dimensions == ("x[0]=batch", "x[2]=?", "z[0]=batch", "z[2]=seq len", "free=?")


def test_the_suggested_command_line_binds_the_model():
    pytest.importorskip("tvm")
    refused(conv_bn_relu("batch"), ShapeError, "--dim batch=1")
    assert import_onnx(conv_bn_relu("batch"), dims={"batch": 1}).signature.inputs[0].shape == (1, 3, 13, 11)


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        ({"shapes": {"X": (1, 3, 13, 11)}}, ["'X'", "x[batch,3,13,11]"]),
        ({"dims": {"Batch": 1}}, ["'Batch'", "x[batch,3,13,11]"]),
        ({"shapes": {"x": (1, 3, 13)}}, ["3 dimensions", "has 4"]),
        ({"shapes": {"x": (1, 4, 13, 11)}}, ["axis 1 of 'x' at 3"]),
        ({"shapes": {"x": (2, 3, 13, 11)}, "dims": {"batch": 1}}, ["'batch' is 2 here and 1 by --dim batch=1"]),
        ({"dims": {"batch": 0}}, ["1 or more"]),
        ({"dims": {"batch": -1}}, ["1 or more"]),
        ({"dims": {"batch": 1.5}}, ["no whole number"]),
        ({"shapes": {"x": (True and "1", 3, 13, 11)}}, ["no whole number"]),
    ],
)
def test_a_wrong_binding_is_refused(bindings, words):
    error = refused(conv_bn_relu("batch"), ShapeError, *words, **bindings)
    assert error.dimensions == ()


def test_two_inputs_that_bind_one_symbol_apart_are_refused():
    graph = model(
        [helper.make_node("Add", ["x", "z"], ["y"])], [value("x", ("n",)), value("z", ("n",))], [value("y", None)]
    )
    refused(graph, ShapeError, "'n' is 3 here and 2 by", shapes={"x": (2,), "z": (3,)})


def test_shapes_that_do_not_fit_together_are_refused():
    graph = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", (2, "k"))],
        [value("y", None)],
        {"w": random_weight((5, 5))},
    )
    refused(graph, ModelError, "do not fit together", "MatMul", dims={"k": 4})


def test_a_sequence_of_unknown_length_is_refused():
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, (2,))
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    refused(model([node], [sequence], [value("y", (2,))], {"i": np.array(0)}), ShapeError, "'s'", "sequence")


@pytest.mark.compiler
def test_every_unsupported_operator_is_in_one_error_with_its_nodes():
    graph = conv_bn_relu()
    graph.opset_import.append(helper.make_opsetid("acme", 2))
    graph.graph.node.extend(
        [
            helper.make_node("Rocket", ["x"], ["q"], name="r1", domain="acme"),
            helper.make_node("StringNormalizer", ["x"], ["d"], name="d1"),
            helper.make_node("Rocket", ["q"], ["q2"], domain="acme"),
            helper.make_node("NoSuchThing", ["x"], ["n"], name="n1"),
        ]
    )
    error = refused(graph, UnsupportedOperatorError, "3 operators", "acme.Rocket", "StringNormalizer", "NoSuchThing")
    assert error.operators == (
        "acme.Rocket (op-set 2): r1, the node that makes 'q2'",
        "ai.onnx.StringNormalizer (op-set 17): d1",
        "ai.onnx.NoSuchThing (op-set 17): n1",
    )


@pytest.mark.compiler
def test_an_operator_is_not_taken_for_its_namesake_in_another_domain():
    refused(one_node("Relu", domain="acme"), UnsupportedOperatorError, "acme.Relu")
    rows = [random_weight((2, 3, 4, 8), seed) for seed in (1, 2)]
    assert import_onnx(one_node("Attention", *rows, shape=(2, 3, 4, 8), opset=23)).signature.outputs[0].shape[0] == 2
    assert import_onnx(one_node("Gelu", domain="com.microsoft")).signature.outputs[0].shape == (2, 3)


@pytest.mark.compiler
def test_an_unsupported_operator_inside_a_branch_is_found():
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("RandomNormalLike", ["x"], [name], name=f"{name}_draw")], name, [], [value(name, (3, 3))]
        )
        for name in ("then", "else")
    }
    node = helper.make_node("If", ["flag"], ["y"], **branches)
    graph = model([node], [value("x", (3, 3)), value("flag", (), onnx.TensorProto.BOOL)], [value("y", (3, 3))])
    refused(graph, UnsupportedOperatorError, "RandomNormalLike", "then_draw", "else_draw")


@pytest.mark.compiler
def test_a_converter_that_fails_is_named_with_its_node(monkeypatch):
    def fail(_op):
        raise ZeroDivisionError("of a converter")

    monkeypatch.setitem(converters._converters(), "Relu", fail)
    error = refused(one_node("Relu"), UnsupportedOperatorError, "Relu", "'the_node'", "of a converter")
    assert error.operators[0].startswith("ai.onnx.Relu (op-set 17): the_node")


@pytest.mark.compiler
def test_an_operand_that_has_to_be_known_is_named_with_its_node_and_its_input():
    graph = model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="total")],
        [value("x", (2, 3)), value("axes", (1,), INT64)],
        [value("y", None)],
    )
    assert refused(graph, UnboundValueError, "ReduceSum", "'total'", "--value axes=").inputs == ("axes",)
    assert refused(one_node("NonZero", result=INT64), UnboundValueError, "NonZero 'the_node'", "'x'").inputs == ("x",)


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64])
def test_an_element_type_that_no_kernel_takes_is_refused(dtype):
    refused(one_node("Identity", dtype=dtype), ModelError, "'x'", "elements of type")


_BASES = [
    build().SerializeToString()
    for build in (conv_bn_relu, onnx_models.embedding, onnx_models.with_function, onnx_models.old_opset)
]


@pytest.mark.compiler
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    base=st.sampled_from(_BASES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.floats(0.9, 1),
)
def test_a_damaged_model_is_imported_or_refused_and_nothing_else(tmp_path, base, edits, kept):
    data = bytearray(base[: int(len(base) * max(kept, 0.95 if len(edits) > 1 else 0))])
    for where, byte in edits:
        data[int(where * min(len(data), 800))] = byte
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    try:
        assert import_onnx(path).name == "damaged"
    except ModelError as error:
        assert "damaged" in error.message


@given(data=st.binary(max_size=300))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_bytes_are_refused(tmp_path, data):
    path = tmp_path / "random.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        import_onnx(path)
