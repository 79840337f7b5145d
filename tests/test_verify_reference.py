"""ReferenceSession runs ONNX Runtime and translates its errors."""

from __future__ import annotations

import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models import FLOAT, conv_bn_relu, mlp, one_node, two_outputs

from tvmbridge.errors import ModelError
from tvmbridge.verify import ReferenceSession, ReferenceUnavailable


def test_a_proto_and_a_file_with_external_data_give_the_same_outputs(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 17)).astype(np.float32)}
    from_proto, from_file = ReferenceSession(mlp()).run(feeds), ReferenceSession(path, threads=1).run(feeds)
    assert list(from_proto) == ["logits"]
    np.testing.assert_allclose(from_proto["logits"], from_file["logits"], rtol=1e-5, atol=1e-6)


def test_all_outputs_come_by_name_and_the_version_is_known():
    session = ReferenceSession(two_outputs(), threads=1)
    outputs = session.run({"x": np.eye(4, 9, dtype=np.float32)})
    assert list(outputs) == ["p", "best"]
    assert list(outputs["best"]) == [0, 1, 2, 3]
    assert session.version.startswith("onnxruntime ")


def test_a_symbolic_batch_takes_any_size():
    session = ReferenceSession(conv_bn_relu("batch"), threads=1)
    assert session.run({"x": np.zeros((4, 3, 13, 11), np.float32)})["y"].shape == (4, 8)


@pytest.mark.parametrize(("dtype", "result"), [(TensorProto.BFLOAT16, None), (FLOAT, TensorProto.INT4)])
def test_types_that_its_python_interface_does_not_pass_make_it_unavailable(dtype, result):
    to = result or FLOAT
    session = ReferenceSession(one_node("Cast", shape=(2, 3), dtype=dtype, result=to, to=to, opset=21))
    with pytest.raises(ReferenceUnavailable, match="passes no tensor"):
        session.run({"x": np.zeros((2, 3), np.float32)})


def test_an_operator_that_it_does_not_implement_makes_it_unavailable():
    with pytest.raises(ReferenceUnavailable, match="reference unavailable: onnxruntime"):
        ReferenceSession(one_node("Rocket", domain="acme"))


def test_a_missing_or_damaged_file_makes_it_unavailable(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\xff")
    for path in (tmp_path / "none.onnx", tmp_path / "bad.onnx"):
        with pytest.raises(ReferenceUnavailable, match="reference unavailable"):
            ReferenceSession(path)


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.zeros((5, 16), np.float32)}, {"x": np.zeros((5, 17))}, {"z": np.zeros(1, np.float32)}]
)
def test_feeds_that_do_not_fit_are_an_error_of_ours(feeds):
    with pytest.raises(ModelError, match="failed on the inputs") as caught:
        ReferenceSession(mlp(), threads=1).run(feeds)
    assert not isinstance(caught.value, ReferenceUnavailable)


def test_a_file_whose_name_is_no_text_is_taken(tmp_path):
    path = tmp_path / os.fsdecode(b"m\xff.onnx")
    onnx.save(mlp(), path)
    assert ReferenceSession(path, threads=1).run({"x": np.ones((5, 17), np.float32)})["logits"].shape == (5, 10)


def test_without_onnxruntime_the_hint_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ReferenceUnavailable, match="pip install onnxruntime"):
        ReferenceSession(mlp())
