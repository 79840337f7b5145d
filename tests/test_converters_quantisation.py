"""Quantising operators compute what ONNX Runtime or ONNX's reference computes, of every type and granularity."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import model, value

from tvmbridge import backend
from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16}
ODD = np.array([0, 0.5, -0.5, 1.5, 2.5, -2.5, 126.5, 127.5, -128.5, 1e9, -1e9, np.inf, -np.inf, 3.3, -7.7], np.float32)


def node_model(op_type: str, operands: dict[str, np.ndarray | None], outputs: int = 1, **attributes) -> onnx.ModelProto:
    """One node whose operands are all inputs of the graph; the op-set is 21 or `opset`."""
    opset = attributes.pop("opset", 21)
    names = [name if array is not None else "" for name, array in operands.items()]
    inputs = [
        value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in operands.items()
        if array is not None
    ]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, made, **attributes)
    results = [onnx.ValueInfoProto(name=name) for name in made]
    graph = model([node], inputs, results, opset=opset)
    graph.ir_version = 10
    return onnx.shape_inference.infer_shapes(graph)


def feeds(operands: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {name: array for name, array in operands.items() if array is not None}


def by_reference(graph: onnx.ModelProto, operands: dict[str, np.ndarray | None]) -> list[np.ndarray]:
    return [np.asarray(array) for array in ReferenceEvaluator(graph).run(None, feeds(operands))]


def by_onnx_runtime(graph: onnx.ModelProto, operands: dict[str, np.ndarray | None]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, feeds(operands))


def assert_as(expected: list[np.ndarray], graph: onnx.ModelProto, operands: dict[str, np.ndarray | None], steps=0):
    outputs = backend.run_model(graph, feeds(operands))
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype and output.shape == wanted.shape
        if wanted.dtype.kind in "iu":
            assert np.abs(output.astype(np.int64) - wanted.astype(np.int64)).max() <= steps
        else:
            np.testing.assert_allclose(output, wanted, rtol=1e-6)


NARROW = [
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
    "int4",
    "uint4",
    "uint2",
]


@pytest.mark.parametrize(("dtype", "saturate"), [*((name, 1) for name in NARROW), *((name, 0) for name in NARROW[:4])])
def test_narrow_types_are_quantised_to_and_from(dtype: str, saturate: int) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype))
    odd = ODD if dtype.startswith("float") else ODD[np.isfinite(ODD)]  # ONNX's reference makes anything of infinity
    x = np.concatenate([odd, (np.random.default_rng(0).normal(size=50) * 9).astype("f4")])
    operands = {"x": x, "scale": np.array(0.7, np.float32), "zero": np.zeros((), kind)}
    graph = node_model("QuantizeLinear", operands, opset=25, saturate=saturate)
    (expected,) = by_reference(graph, operands)
    (output,) = backend.run_model(graph, operands)
    assert output.dtype == kind
    np.testing.assert_array_equal(output.astype("f4"), expected.astype("f4"))
    operands["x"] = expected
    graph = node_model("DequantizeLinear", operands, opset=25)
    (output,) = backend.run_model(graph, operands)
    np.testing.assert_array_equal(output, by_reference(graph, operands)[0])


def scales(shape: tuple[int, ...], dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and zero points somewhere in the middle of the type."""
    generator, limits = np.random.default_rng(seed), np.iinfo(dtype)
    middle = (int(limits.min) + int(limits.max) + 1) // 2
    points = generator.integers(middle - 9, middle + 9, shape).astype(dtype)
    return np.asarray(generator.uniform(0.01, 0.9, shape), np.float32), np.asarray(points)


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_rounded_half_to_even_and_saturated(dtype: str) -> None:
    operands = {"x": ODD, "scale": np.array(1, np.float32), "zero": np.array(3, dtype)}
    graph = node_model("QuantizeLinear", operands)
    assert_as(by_onnx_runtime(graph, operands), graph, operands)


GRANULARITIES = {
    "tensor": ((), {}),
    "one element": ((1,), {}),
    "axis": ((5,), {"axis": 1}),
    "last axis": ((7,), {"axis": -1}),
    "blocks": ((3, 2, 7), {"axis": 1, "block_size": 3}),
    "blocks of the last axis": ((3, 5, 3), {"axis": 2, "block_size": 3}),
}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", ["int8", "uint16"])
def test_every_granularity_quantises_and_dequantises(granularity: str, dtype: str) -> None:
    shape, attributes = GRANULARITIES[granularity]
    scale, zero = scales(shape, dtype)
    x = (np.random.default_rng(1).normal(size=(3, 5, 7)) * 20).astype(np.float32)
    operands = {"x": x, "scale": scale, "zero": zero}
    graph = node_model("QuantizeLinear", operands, **attributes)
    expected = by_onnx_runtime(graph, operands)
    assert_as(expected, graph, operands)
    operands["x"] = expected[0]
    graph = node_model("DequantizeLinear", operands, **attributes)
    assert_as(by_onnx_runtime(graph, operands), graph, operands)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=4),
    opset=st.sampled_from([10, 13, 19, 21, 23]),
    dtype=st.sampled_from(["int8", "uint8"]),
    seed=st.integers(0, 99),
)
def test_any_shape_of_any_op_set_goes_to_integers_and_back(shape, opset, dtype, seed) -> None:
    generator = np.random.default_rng(seed)
    axis = int(generator.integers(len(shape)))
    by_axis = opset >= 13 and len(shape) > 1 and shape[axis] > 1
    scale, zero = scales((shape[axis],) if by_axis else (), dtype, seed)
    operands = {"x": (generator.normal(size=shape) * 30).astype(np.float32), "scale": scale, "zero": zero}
    attributes = {"axis": axis} if by_axis else {}
    graph = node_model("QuantizeLinear", operands, opset=opset, **attributes)
    assert_as(by_onnx_runtime(graph, operands), graph, operands)


def test_a_float16_scale_divides_in_float16_and_a_float16_result_is_rounded_once() -> None:
    x = (np.random.default_rng(0).normal(size=(5, 11)) * 3).astype(np.float16)
    operands = {"x": x, "scale": np.array(0.01, np.float16), "zero": np.array(40000, np.uint16)}
    graph = node_model("QuantizeLinear", operands)
    expected = by_reference(graph, operands)
    assert_as(expected, graph, operands)
    operands["x"] = expected[0]
    graph = node_model("DequantizeLinear", operands)
    assert_as(by_reference(graph, operands), graph, operands)


def test_the_attributes_of_newer_op_sets_decide_type_and_precision() -> None:
    x, scale = (np.random.default_rng(0).normal(size=(5, 11)) * 3).astype(np.float32), np.array(0.01, np.float32)
    operands = {"x": x, "scale": scale}
    graph = node_model(
        "QuantizeLinear", operands, opset=23, output_dtype=TensorProto.INT16, precision=TensorProto.FLOAT16
    )
    assert_as(by_reference(graph, operands), graph, operands)
    operands = {"x": np.arange(-9, 9).astype(np.int16), "scale": scale}
    graph = node_model("DequantizeLinear", operands, opset=23, output_dtype=TensorProto.FLOAT16)
    assert_as(by_reference(graph, operands), graph, operands)


def test_sums_of_int32_quantise_and_dequantise() -> None:
    x = np.array([0, 1, -1, 12345, -98765, 2**31 - 1, -(2**31)], np.int32)
    operands = {"x": x, "scale": np.array(0.5, np.float32), "zero": None}
    graph = node_model("DequantizeLinear", operands)
    assert_as(by_onnx_runtime(graph, operands), graph, operands)
    operands = {"x": x, "scale": np.array(999, np.float32), "zero": np.array(5, np.int8)}
    graph = node_model("QuantizeLinear", operands, opset=13)
    assert_as(by_reference(graph, operands), graph, operands)


@pytest.mark.parametrize("low", [-3.0, 2.0, 0.0])
def test_dynamic_quantisation_finds_the_range_zero_included(low: float) -> None:
    x = np.random.default_rng(0).uniform(low, low + 2, (3, 7)).astype(np.float32) if low else np.zeros((3, 7), "f4")
    graph = node_model("DynamicQuantizeLinear", {"x": x}, outputs=3)
    assert_as(by_onnx_runtime(graph, {"x": x}), graph, {"x": x})


def integers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_products_of_integers_are_exact(kinds: tuple[str, str]) -> None:
    a, b = integers((2, 5, 301), kinds[0], 1), integers((301, 7), kinds[1], 2)
    operands = {"a": a, "b": b, "az": integers((), kinds[0], 3), "bz": integers((7,), kinds[1], 4)}
    wide = {name: array.astype(np.int64) for name, array in operands.items()}
    expected = (wide["a"] - wide["az"]) @ (wide["b"] - wide["bz"])
    graph = node_model("MatMulInteger", operands)
    assert_as([expected.astype(np.int32)], graph, operands)


def test_zero_points_by_row_are_of_rows() -> None:
    a, b = integers((5, 11), "uint8", 1), integers((11, 7), "uint8", 2)
    operands = {"a": a, "b": b, "az": integers((5,), "uint8", 3)}
    expected = (a.astype(np.int32) - operands["az"].astype(np.int32)[:, None]) @ b.astype(np.int32)
    assert_as([expected], node_model("MatMulInteger", operands), operands)


def test_a_quantised_product_is_exact_by_row_and_column() -> None:
    (a_scale, a_zero), (b_scale, b_zero) = scales((5, 1), "uint8", 1), scales((1, 7), "int8", 2)
    operands = {
        **{"a": integers((2, 5, 11), "uint8", 1), "as": a_scale, "az": a_zero},
        **{"b": integers((2, 11, 7), "int8", 2), "bs": b_scale, "bz": b_zero},
        **{"ys": np.array(50, np.float32), "yz": np.array(100, np.uint8)},
    }
    graph = node_model("QLinearMatMul", operands)
    assert_as(by_reference(graph, operands), graph, operands, steps=1)


@pytest.mark.parametrize("spatial", [(9,), (8, 7), (4, 5, 6)])
def test_a_quantised_convolution_is_exact_by_channel(spatial: tuple[int, ...]) -> None:
    kernel = (3,) * len(spatial)
    scale, zero = scales((6,), "int8", 2)
    operands = {
        **{"x": integers((2, 4, *spatial), "uint8", 1), "xs": np.array(0.02, "f4"), "xz": np.array(120, np.uint8)},
        **{"w": integers((6, 2, *kernel), "int8", 2), "ws": scale, "wz": np.zeros_like(zero)},
        **{"ys": np.array(0.7, np.float32), "yz": np.array(100, np.uint8), "b": np.arange(-300, 300, 100, np.int32)},
    }
    attributes = {"group": 2, "auto_pad": "SAME_LOWER", "strides": (2,) * len(spatial)}
    graph = node_model("QLinearConv", operands, **attributes)
    assert_as(by_onnx_runtime(graph, operands), graph, operands, steps=1)


@pytest.mark.parametrize(("channels", "dtype"), [(19, "float32"), (150, "int32")])
def test_known_weights_tell_whether_float32_holds_the_sums(channels: int, dtype: str) -> None:
    """Of the largest operands there are, so that a sum that float32 does not hold would be seen."""
    weights = {
        **{"xs": np.array(1, "f4"), "xz": np.array(0, "u1"), "w": np.full((2, channels, 3, 3), 127, "i1")},
        **{"ws": np.ones(2, "f4"), "wz": np.zeros(2, "i1"), "ys": np.array(1, "f4"), "yz": np.array(0, "u1")},
        "b": np.array([-channels * 9 * 255 * 127 + 100, 7], "i4"),
    }
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"])
    shape = (1, channels, 3, 3)
    graph = model([node], [value("x", shape, TensorProto.UINT8)], [value("y", None, TensorProto.UINT8)], weights)
    (convolution,) = [line for line in import_onnx(graph).module.script().splitlines() if "conv2d" in line]
    assert dtype in convolution
    (output,) = backend.run_model(graph, [np.full(shape, 255, "u1")])
    assert output.ravel().tolist() == [100, 255]


def test_an_integer_convolution_is_exact_by_channel() -> None:
    operands = {"x": integers((2, 3, 7, 9), "uint8", 1), "w": integers((5, 3, 3, 2), "uint8", 2)}
    operands |= {"xz": np.array(128, np.uint8), "wz": integers((5,), "uint8", 3)}
    graph = node_model("ConvInteger", operands, pads=[1, 0, 2, 1], dilations=[2, 1])
    assert_as(by_reference(graph, operands), graph, operands)


def test_a_scale_of_the_wrong_kind_is_refused_by_name() -> None:
    operands = {"x": np.zeros((3, 5), np.float32), "scale": np.ones((2, 2), np.float32), "zero": np.zeros((2, 2), "u1")}
    with pytest.raises(UnsupportedOperatorError, match="block_size"):
        import_onnx(node_model("QuantizeLinear", operands))
