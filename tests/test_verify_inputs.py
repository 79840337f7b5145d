"""random_inputs draws what the model can take; read_inputs reads .npz files and says what is wrong with others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import BOOL, FLOAT, INT64, embedding, mlp, model, one_node, random_weight, value, with_function

from tvmbridge.errors import InputError, ModelFileError, OutputError
from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.verify import random_inputs, read_inputs
from tvmbridge.verify.inputs import write_arrays


def signature_of(graph: onnx.ModelProto) -> ModelSignature:
    specs = []
    for entry in graph.graph.input:
        tensor = entry.type.tensor_type
        shape = tuple(axis.dim_value for axis in tensor.shape.dim)
        specs.append(TensorSpec(entry.name, shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name))
    return ModelSignature(tuple(specs), ())


def draw(graph: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    return random_inputs(graph, signature_of(graph), seed=seed)


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others():
    first, again, other = draw(mlp(), 1), draw(mlp(), 1), draw(mlp(), 2)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])


def test_floats_are_varied_and_have_the_shape_and_dtype_of_the_signature():
    x = draw(mlp(5))["x"]
    assert x.shape == (5, 17) and x.dtype == np.float32
    assert len(np.unique(x)) == x.size and (x < 0).any() and (x > 0).any()


def test_token_ids_use_the_whole_table_and_stay_within_it():
    drawn = [draw(embedding(rows=23), seed) for seed in range(20)]
    ids = np.concatenate([sample["ids"].ravel() for sample in drawn])
    masks = np.concatenate([sample["mask"].ravel() for sample in drawn])
    assert ids.dtype == np.int64
    assert set(ids) == set(range(23))
    assert set(masks) == {0, 1}


def test_a_file_is_followed_like_a_proto_also_with_external_data(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(embedding(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    drawn = random_inputs(path, signature_of(embedding()), seed=4)
    np.testing.assert_array_equal(drawn["ids"], draw(embedding(), 4)["ids"])


def test_the_smallest_of_several_tables_is_the_limit():
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=INT64),
        helper.make_node("Gather", ["large", "wide"], ["a"]),
        helper.make_node("Unsqueeze", ["wide", "zero"], ["more"]),
        helper.make_node("Gather", ["small", "more"], ["b"], axis=1),
    ]
    weights = {"large": random_weight((50, 2)), "small": random_weight((2, 3)), "zero": np.array([0])}
    ids = value("ids", (40,), TensorProto.INT32)
    graph = model(nodes, [ids], [value("a", None), value("b", None)], weights)
    assert set(draw(graph)["ids"]) == {0, 1, 2}


def test_ids_are_followed_into_a_function_and_into_what_is_computed():
    body = [helper.make_node("Gather", ["t", "i"], ["o"])]
    function = helper.make_function("local", "Lookup", ["t", "i"], ["o"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Lookup", ["t", "ids"], ["y"], domain="local"),
    ]
    inputs = [value("x", (2, 9)), value("ids", (60,), INT64)]
    graph = model(nodes, inputs, [value("y", None)], domains={"local": 1}, functions=[function])
    assert set(draw(graph)["ids"]) == set(range(9))


@pytest.mark.parametrize(
    ("node", "table", "limit"),
    [
        (helper.make_node("GatherElements", ["t", "ids"], ["y"], axis=1), (3, 7), 7),
        (helper.make_node("GatherND", ["t", "ids"], ["y"]), (5, 4, 9), 4),
        (helper.make_node("OneHot", ["ids", "depth", "t"], ["y"]), (2,), 6),
    ],
)
def test_every_kind_of_index_is_limited(node, table, limit):
    weights = {"t": random_weight(table), "depth": np.array([6])}
    graph = model(
        [node], [value("ids", (3, 40) if node.op_type != "GatherND" else (40, 2), INT64)], [value("y", None)], weights
    )
    ids = draw(graph)["ids"]
    assert ids.min() == 0 and ids.max() == limit - 1


def test_bytes_have_their_whole_range_and_booleans_both_values():
    nodes = [helper.make_node("Cast", [name], [f"{name}_f"], to=FLOAT) for name in "usb"]
    inputs = [value("u", (999,), TensorProto.UINT8), value("s", (999,), TensorProto.INT8), value("b", (99,), BOOL)]
    drawn = draw(model(nodes, inputs, [value(f"{name}_f", None) for name in "usb"]))
    assert drawn["u"].dtype == np.uint8 and drawn["u"].max() > 200
    assert drawn["s"].dtype == np.int8 and drawn["s"].min() < -100
    assert set(drawn["b"]) == {False, True}


def test_bfloat16_and_empty_shapes_are_drawn():
    specs = (TensorSpec("h", (4,), "bfloat16"), TensorSpec("s", (), "float32"))
    drawn = random_inputs(one_node("Relu"), ModelSignature(specs, ()))
    assert drawn["h"].dtype.name == "bfloat16" and drawn["s"].shape == ()


def test_a_source_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff")
    for path in (tmp_path / "bad.onnx", tmp_path / "none.onnx"):
        with pytest.raises(ModelFileError, match=path.name):
            random_inputs(path, signature_of(mlp()))


SIGNATURE = signature_of(with_function())


def test_an_npz_file_is_read_by_name(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.arange(15, dtype=np.float32).reshape(3, 5))
    read = read_inputs(path, SIGNATURE)
    assert list(read) == ["x"] and read["x"].dtype == np.float32
    np.testing.assert_array_equal(read["x"].ravel(), np.arange(15))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "float4_e2m1fn"])
def test_types_that_numpy_files_forget_come_back(dtype, tmp_path):
    spec = TensorSpec("x", (2, 3), dtype)
    x = np.array([[0, 1, -1], [2, -2, 3]]).astype(getattr(ml_dtypes, dtype))
    write_arrays(tmp_path / "in.npz", {"x": x})
    read = read_inputs(tmp_path / "in.npz", ModelSignature((spec,), ()))["x"]
    assert read.dtype == x.dtype
    np.testing.assert_array_equal(read.view(f"u{x.itemsize}"), x.view(f"u{x.itemsize}"))


def test_a_dtype_is_converted_only_where_no_value_changes(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.full((3, 5), 0.5))
    assert read_inputs(path, SIGNATURE)["x"].dtype == np.float32
    np.savez(path, x=np.full((3, 5), 0.1))
    with pytest.raises(InputError, match="not every value fits float32"):
        read_inputs(path, SIGNATURE)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((3, 5), np.float32)}, r"lacks 'x' and has the unknown 'X'"),
        ({}, "lacks 'x'"),
        ({"x": np.zeros((3, 5), np.float32), "more": np.zeros(1)}, "unknown 'more'"),
        ({"x": np.zeros((5, 3), np.float32)}, r"'x' has shape \(5, 3\)"),
        ({"x": np.full((3, 5), "a")}, "'x' has dtype <U1"),
        ({"x": np.full((3, 5), None)}, "no readable .npz"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_the_model_takes(tmp_path, arrays, words):
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=words):
        read_inputs(path, SIGNATURE)


def test_a_missing_file_a_folder_and_a_bare_array_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    for path in (tmp_path / "none.npz", tmp_path, tmp_path / "one.npy"):
        with pytest.raises(InputError, match=path.name):
            read_inputs(path, SIGNATURE)


@given(cut=st.floats(0, 1), where=st.floats(0, 0.999), byte=st.integers(0, 255), compressed=st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, cut, where, byte, compressed):
    path = tmp_path / "in.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.arange(15, dtype=np.float32).reshape(3, 5))
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] = byte
    path.write_bytes(data[: int(len(data) * cut)] if cut < 0.5 else data)
    try:
        assert read_inputs(path, SIGNATURE)["x"].shape == (3, 5)
    except InputError as error:
        assert "in.npz" in error.message


def test_arrays_are_written_under_any_name_and_replace_what_was_there(tmp_path):
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")
    arrays = {"file": np.arange(3), "a/b": np.ones((2, 0)), "x": np.array(2.5)}
    write_arrays(path, arrays)
    with np.load(path) as read:
        assert {name: read[name].tolist() for name in read.files} == {k: v.tolist() for k, v in arrays.items()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(path, {"a": np.arange(9), "b": np.array([None])})
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_missing_or_is_the_target_is_an_error_of_ours(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "out.npz", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot write the arrays"):
            write_arrays(path, {"a": np.arange(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
