"""Sum, Mean, Max and Min of tensors compute what ONNX Runtime computes, of any rank and with NaN in any operand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from kernels import run_lowered
from onnx import TensorProto, helper
from onnx_models import FLOAT, INT64, model, random_weight, value

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession, random_inputs

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")


def variadic(op_type: str, shapes: list[tuple[int, ...]], dtype: int = FLOAT) -> onnx.ModelProto:
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [value(name, shape, dtype) for name, shape in zip(names, shapes, strict=True)]
    return model([helper.make_node(op_type, names, ["y"], name="the_node")], inputs, [value("y", None, dtype)])


def assert_computes_the_same(graph: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    imported = import_onnx(graph)
    outputs = run_lowered(lower(imported, NATIVE), NATIVE, [feeds[spec.name] for spec in imported.signature.inputs])
    expected = ReferenceSession(graph, threads=1).run(feeds)
    for spec, output in zip(imported.signature.outputs, outputs, strict=True):
        assert output.dtype == expected[spec.name].dtype
        np.testing.assert_allclose(output, expected[spec.name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shapes", [[(), ()], [(3, 5), (5,)], [(3, 1), (1, 5), ()], [(7,)]], ids=str)
@pytest.mark.parametrize(
    ("op_type", "dtype"),
    [
        *((op_type, FLOAT) for op_type in ("Sum", "Mean", "Max", "Min")),
        *(("Max", dtype) for dtype in (INT64, TensorProto.FLOAT16, TensorProto.DOUBLE)),
        *(("Min", dtype) for dtype in (INT64, TensorProto.INT32)),
    ],
)
def test_tensors_of_any_rank_and_number_are_put_together_rightly(op_type, dtype, shapes):
    generator = np.random.default_rng(len(shapes))
    element = helper.tensor_dtype_to_np_dtype(dtype)
    feeds = {f"x{i}": np.asarray(generator.normal(size=s) * 9).astype(element) for i, s in enumerate(shapes)}
    assert_computes_the_same(variadic(op_type, shapes, dtype), feeds)


@pytest.mark.parametrize("op_type", ["Max", "Min", "Mean"])
def test_a_nan_in_either_operand_comes_through(op_type):
    feeds = {"x0": np.array([np.nan, 1, 2, np.nan], "f4"), "x1": np.array([1, np.nan, 3, np.nan], "f4")}
    assert_computes_the_same(variadic(op_type, [(4,), (4,)]), feeds)
    assert np.isnan(ReferenceSession(variadic(op_type, [(4,), (4,)])).run(feeds)["y"]).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_the_extremes_of_two_convolutions_are_laid_out_with_them():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Max", ["a", "b"], ["m"]),
        helper.make_node("Mean", ["m", "a", "b"], ["n"]),
        helper.make_node("Conv", ["n", "u"], ["y"]),
    ]
    shapes = {"w": (8, 3, 3, 3), "v": (8, 3, 3, 3), "u": (4, 8, 1, 1)}
    weights = {name: random_weight(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    graph = model(nodes, [value("x", (1, 3, 13, 11))], [value("y", None)], weights)
    x = np.random.default_rng(0).standard_normal((1, 3, 13, 11)).astype("f4")
    assert_computes_the_same(graph, {"x": x}, 1e-5)


def test_a_quantisation_written_out_in_its_operators_is_taken():
    body = onnx.defs.get_schema("DynamicQuantizeLinear", 17).function_body
    bytes_ = TensorProto.UINT8
    outputs = [value("y", None, bytes_), value("y_scale", None), value("y_zero_point", None, bytes_)]
    graph = model(list(body.node), [value("x", (3, 7))], outputs)
    imported = import_onnx(graph)
    assert_computes_the_same(graph, random_inputs(None, imported.signature, seed=1))
