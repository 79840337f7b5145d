"""Inputs that decide shapes are bound to values when the model is built: in Python and on the command line."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import INT64, model, value

import tvmbridge
from tvmbridge.bundle import BoundValue, describe_values, read_values
from tvmbridge.bundle.bound import find_bound_fault
from tvmbridge.bundle.dtypes import numpy_dtype
from tvmbridge.cli import main
from tvmbridge.errors import InputError, ShapeError, UnboundValueError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler


def reshaping():
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="fold")
    return model([node], [value("x", (2, 6)), value("shape", (2,), INT64)], [value("y", None)])


def test_a_bound_input_leaves_the_signature_and_decides_the_shape():
    signature = import_onnx(reshaping(), values={"shape": np.array([4, 3])}).signature
    assert [spec.name for spec in signature.inputs] == ["x"]
    assert signature.outputs[0].shape == (4, 3)


def test_an_input_that_decides_a_shape_and_is_not_bound_is_named():
    with pytest.raises(UnboundValueError, match="fold") as caught:
        import_onnx(reshaping())
    assert caught.value.inputs == ("shape",)
    assert "--value shape=" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"axes": [1]}, "no input is called 'axes'"),
        ({"shape": np.array([4, 3], np.int32)}, "int32 given"),
        ({"shape": [4.5, 3]}, "float64 given"),
        ({"shape": [4, 3, 1]}, "shape \\[3\\]"),
    ],
)
def test_a_value_that_does_not_fit_the_input_is_refused(values, word):
    with pytest.raises(ShapeError, match=word):
        import_onnx(reshaping(), values=values)


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "float16", "bfloat16", "int4"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_a_bundle_gives_back_the_values_that_it_was_built_with(dtype, shape):
    value = np.random.default_rng(0).integers(0, 7, shape).astype(numpy_dtype(dtype))
    (entry,) = msgspec.json.decode(msgspec.json.encode(describe_values({"x": value})), type=tuple[BoundValue, ...])
    assert find_bound_fault([entry]) is None
    read = read_values([entry], {}, source="m.tvmb")["x"]
    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)
    np.testing.assert_array_equal(read_values([entry], {"x": value}, source="m.tvmb")["x"], value)


def test_a_value_too_long_for_the_bundle_has_to_be_given_again():
    value = np.arange(20_000, dtype=np.float32)
    (entry,) = describe_values({"x": value})
    assert entry.data is None
    with pytest.raises(InputError, match=r"float32\[20000\], which it lacks"):
        read_values([entry], {}, source="m.tvmb")
    assert read_values([entry], {"x": value}, source="m.tvmb")["x"] is value
    with pytest.raises(InputError, match="another value"):
        read_values([entry], {"x": value + 1}, source="m.tvmb")
    with pytest.raises(InputError, match="without a value for 'y'"):
        read_values([entry], {"x": value, "y": value}, source="m.tvmb")


@pytest.mark.parametrize(
    "changes", [{"dtype": "text"}, {"shape": (-1,)}, {"shape": (3,)}, {"data": b"12345678"}, {"sha256": "0" * 64}]
)
def test_a_damaged_bound_value_is_found(changes):
    (entry,) = describe_values({"x": np.array([4, 3])})
    assert find_bound_fault([entry]) is None
    assert find_bound_fault([entry, entry]) is not None
    assert find_bound_fault([msgspec.structs.replace(entry, **changes)]) is not None


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code or 0


@pytest.mark.slow
def test_the_command_line_builds_and_verifies_with_a_bound_value(tmp_path, capsys):
    onnx.save(reshaping(), tmp_path / "m.onnx")
    paths = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.tvmb")]
    assert run("build", *paths, "--no-tune", "--value", "shape=[3,4]") == 0
    verify = "verify", str(tmp_path / "m.tvmb"), str(tmp_path / "m.onnx")
    assert run(*verify) == 0
    assert run(*verify, "--value", "shape=[3,4]") == 0
    assert run(*verify, "--value", "shape=[4,3]") != 0
    assert "another value of 'shape'" in capsys.readouterr().err
    assert run("inspect", str(tmp_path / "m.tvmb")) == 0
    assert "bound  shape: int64[2]" in capsys.readouterr().out
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert np.array_equal(tvmbridge.load(tmp_path / "m.tvmb").run({"x": x})["y"], x.reshape(3, 4))
