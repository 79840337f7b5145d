"""Models quantised by ONNX Runtime's own quantiser, in both of its forms, compute what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_models import model, random_weight, value
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from tvmbridge import backend
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler

FORMS = [QuantFormat.QDQ, QuantFormat.QOperator]


def chain(*steps: tuple[str, list[str], str, dict[str, object]]) -> list[onnx.NodeProto]:
    return [helper.make_node(op_type, names, [made], **attributes) for op_type, names, made, attributes in steps]


def convolutional() -> onnx.ModelProto:
    """Plain, strided, depthwise and pointwise convolutions, a residual, a gate and a classifier; x [2, 3, 17, 19]."""
    weights = {
        **{"w1": random_weight((8, 3, 3, 3), 1), "b1": random_weight((8,), 2), "w2": random_weight((8, 1, 3, 3), 3)},
        **{"w3": random_weight((12, 8, 1, 1), 4), "b3": random_weight((12,), 5)},
        **{"w4": random_weight((12, 12, 3, 3), 6), "w5": random_weight((24, 10), 7), "b5": random_weight((10,), 8)},
    }
    nodes = chain(
        ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1] * 4, "strides": [2, 2]}),
        ("Relu", ["c1"], "r1", {}),
        ("Conv", ["r1", "w2"], "c2", {"pads": [1] * 4, "group": 8}),
        ("MaxPool", ["c2"], "m", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["m", "w3", "b3"], "c3", {}),
        ("LeakyRelu", ["c3"], "r3", {"alpha": 0.2}),
        ("Conv", ["r3", "w4"], "c4", {"auto_pad": "SAME_UPPER"}),
        ("Add", ["c4", "r3"], "sum", {}),
        ("Concat", ["sum", "r3"], "wide", {"axis": 1}),
        ("Sigmoid", ["wide"], "gate", {}),
        ("Mul", ["gate", "wide"], "gated", {}),
        ("AveragePool", ["gated"], "pooled", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", ["pooled"], "mean", {}),
        ("Flatten", ["mean"], "flat", {}),
        ("Gemm", ["flat", "w5", "b5"], "y", {}),
    )
    return model(nodes, [value("x", (2, 3, 17, 19))], [value("y", (2, 10))], weights)


def transformer() -> onnx.ModelProto:
    """A block of attention with three heads and a feed-forward part; x [1, 7, 24]."""
    weights = {f"w{name}": random_weight((24, 24), seed) for seed, name in enumerate("qkvo")}
    weights |= {"up": random_weight((24, 40), 9), "bias": random_weight((40,), 11), "down": random_weight((40, 24), 10)}
    weights |= {"gamma": np.ones(24, np.float32), "beta": random_weight((24,)), "root": np.array(8**0.5, np.float32)}
    weights |= {"heads": np.array([1, 7, 3, 8]), "joined": np.array([1, 7, 24])}
    nodes = []
    for name in "qkv":
        nodes += chain(
            ("MatMul", ["x", f"w{name}"], f"{name}1", {}),
            ("Reshape", [f"{name}1", "heads"], f"{name}2", {}),
            ("Transpose", [f"{name}2"], f"{name}3", {"perm": [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]}),
        )
    nodes += chain(
        ("MatMul", ["q3", "k3"], "scores", {}),
        ("Div", ["scores", "root"], "scaled", {}),
        ("Softmax", ["scaled"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "v3"], "mixed", {}),
        ("Transpose", ["mixed"], "together", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["together", "joined"], "rows", {}),
        ("MatMul", ["rows", "wo"], "o", {}),
        ("Add", ["o", "x"], "residual", {}),
        ("LayerNormalization", ["residual", "gamma", "beta"], "norm", {}),
        ("MatMul", ["norm", "up"], "u1", {}),
        ("Add", ["u1", "bias"], "u2", {}),
        ("Relu", ["u2"], "u3", {}),
        ("MatMul", ["u3", "down"], "d", {}),
        ("Add", ["d", "norm"], "y", {}),
    )
    return model(nodes, [value("x", (1, 7, 24))], [value("y", (1, 7, 24))], weights)


class Drawn(CalibrationDataReader):
    """Eight inputs of normal numbers to calibrate with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.feeds = iter([{"x": drawn(shape, seed)} for seed in range(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def input_shape(graph: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim)


def quantised(graph: onnx.ModelProto, folder: Path, form: QuantFormat, **options: object) -> onnx.ModelProto:
    onnx.save(graph, folder / "float.onnx")
    reader = Drawn(input_shape(graph))
    quantize_static(folder / "float.onnx", folder / "quantised.onnx", reader, quant_format=form, **options)
    return onnx.load(folder / "quantised.onnx")


def by_onnx_runtime(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Each operator as it is written: ONNX Runtime's fusions of quantised operators round elsewhere."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph.SerializeToString(), options).run(None, {"x": x})[0]


def last_step(graph: onnx.ModelProto) -> float:
    """The largest scale of those that the outputs are dequantised with."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    names = {entry.name for entry in graph.graph.output}
    return max(float(arrays[node.input[1]].max()) for node in graph.graph.node if names & set(node.output))


@pytest.mark.parametrize("form", FORMS, ids=["QDQ", "operators"])
@pytest.mark.parametrize("made", [convolutional, transformer])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_type": QuantType.QInt8, "per_channel": True},
        {"weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8},
    ],
    ids=["uint8 by channel", "int8"],
)
def test_a_quantised_model_is_within_one_step_of_onnx_runtime(made, form, options, tmp_path) -> None:
    graph = quantised(made(), tmp_path, form, **options)
    assert any(node.op_type == "DequantizeLinear" and "y" in node.output for node in graph.graph.node)
    x = drawn(input_shape(graph), 99)
    (output,) = backend.run_model(graph, [x])
    expected = by_onnx_runtime(graph, x)
    assert np.ptp(expected) > 20 * last_step(graph)
    assert np.abs(output - expected).max() <= 1.01 * last_step(graph)


def test_a_dynamically_quantised_model_agrees_with_onnx_runtime(tmp_path) -> None:
    graph = transformer()
    onnx.save(graph, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "quantised.onnx", weight_type=QuantType.QInt8)
    graph = onnx.load(tmp_path / "quantised.onnx")
    assert "MatMulInteger" in {node.op_type for node in graph.graph.node}
    x = drawn((1, 7, 24), 99)
    (output,) = backend.run_model(graph, [x])
    np.testing.assert_allclose(output, by_onnx_runtime(graph, x), atol=1e-4)


def test_dequantised_weights_are_constants_of_the_compiled_model(tmp_path) -> None:
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wide"], axis=0)
    product = helper.make_node("MatMul", ["x", "wide"], ["y"])
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.integers(-128, 128, (300, 401)).astype(np.int8),  # too large to fold as other operators are
        "s": generator.uniform(0.01, 0.02, 300).astype(np.float32),
        "z": generator.integers(-3, 3, 300).astype(np.int8),
    }
    graph = model([node, product], [value("x", (2, 300))], [value("y", (2, 401))], weights)
    text = import_onnx(graph).module.script()
    assert "matmul" in text and "subtract" not in text and "int8" not in text
