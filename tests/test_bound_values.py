"""Inputs that decide shapes are bound to values when the model is built: in Python and on the command line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import INT64, model, value

import tvmbridge
from tvmbridge.cli import main
from tvmbridge.errors import ShapeError, UnboundValueError
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


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code or 0


@pytest.mark.slow
def test_the_command_line_builds_and_verifies_with_a_bound_value(tmp_path):
    onnx.save(reshaping(), tmp_path / "m.onnx")
    paths = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.tvmb")]
    assert run("build", *paths, "--no-tune", "--value", "shape=[3,4]") == 0
    assert run("verify", str(tmp_path / "m.tvmb"), str(tmp_path / "m.onnx"), "--value", "shape=[3,4]") == 0
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert np.array_equal(tvmbridge.load(tmp_path / "m.tvmb").run({"x": x})["y"], x.reshape(3, 4))
