"""Builds the small ONNX models that tests import, compile and run: seeded random weights, ragged shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
BOOL = TensorProto.BOOL
OPSET = 17

Axes = Sequence[int | str | None]


def value(name: str, shape: Axes | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    name: str = "small",
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def random_weight(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Normal, scaled so that a layer keeps the scale of its input."""
    scale = 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def one_node(
    op_type: str,
    *operands: np.ndarray | str | None,
    shape: Axes = (2, 3),
    dtype: int = FLOAT,
    result: int | None = None,
    outputs: Sequence[str] = ("y",),
    domain: str = "",
    opset: int = OPSET,
    **attributes: object,
) -> onnx.ModelProto:
    """One operator on "x". operands: what follows x: an array is a weight, a name an int64 input, None is absent."""
    names, weights, inputs = ["x"], {}, [value("x", shape, dtype)]
    for position, operand in enumerate(operands):
        if operand is None:
            names.append("")
        elif isinstance(operand, str):
            names.append(operand)
            inputs.append(value(operand, (None,) if operand.startswith("?") else (1,), INT64))
        else:
            names.append(f"w{position}")
            weights[f"w{position}"] = operand
    node = helper.make_node(op_type, names, list(outputs), name="the_node", domain=domain, **attributes)
    made = [value(name, None, (result or dtype) if name == outputs[0] else FLOAT) for name in outputs if name]
    domains = {domain: 1} if domain else None
    return model([node], inputs, made, weights, opset=opset, domains=domains)


def conv_bn_relu(batch: int | str = 1, *, opset: int = OPSET) -> onnx.ModelProto:
    """Convolution 3 → 8 channels, batch norm, ReLU, global average: x [batch, 3, 13, 11] → y [batch, 8]."""
    generator = np.random.default_rng(1)
    weights = {
        "w": random_weight((8, 3, 3, 3)),
        "gamma": generator.uniform(0.5, 1.5, 8).astype(np.float32),
        "beta": generator.standard_normal(8).astype(np.float32),
        "mean": generator.standard_normal(8).astype(np.float32),
        "var": generator.uniform(0.5, 1.5, 8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["y"], name="flatten"),
    ]
    return model(nodes, [value("x", (batch, 3, 13, 11))], [value("y", (batch, 8))], weights, opset=opset)


def mlp(batch: int | str = 5) -> onnx.ModelProto:
    """Two Gemms with a ReLU between: x [batch, 17] → logits [batch, 10]."""
    weights = {
        "w1": random_weight((31, 17), 1),
        "b1": random_weight((31,), 2),
        "w2": random_weight((10, 31), 3),
        "b2": random_weight((10,), 4),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="gemm1", transB=1),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"], name="gemm2", transB=1),
    ]
    return model(nodes, [value("x", (batch, 17))], [value("logits", (batch, 10))], weights)


def embedding(rows: int = 23) -> onnx.ModelProto:
    """Token ids [2, 7] (int64) and a mask [2, 7] (int64) → states [2, 7, 5]: ids index a table of `rows` rows."""
    nodes = [
        helper.make_node("Identity", ["ids"], ["same"], name="same"),
        helper.make_node("Gather", ["table", "same"], ["rows"], name="gather"),
        helper.make_node("Cast", ["mask"], ["weight"], name="cast", to=FLOAT),
        helper.make_node("Unsqueeze", ["weight", "axes"], ["wide"], name="widen"),
        helper.make_node("Mul", ["rows", "wide"], ["states"], name="mul"),
    ]
    weights = {"table": random_weight((rows, 5)), "axes": np.array([2], np.int64)}
    inputs = [value("ids", (2, 7), INT64), value("mask", (2, 7), INT64)]
    return model(nodes, inputs, [value("states", (2, 7, 5))], weights)


def two_outputs() -> onnx.ModelProto:
    """x [4, 9] → its sigmoid, and the index of the largest of each row."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["p"], name="sigmoid"),
        helper.make_node("ArgMax", ["p"], ["best"], name="argmax", axis=1, keepdims=0),
    ]
    return model(nodes, [value("x", (4, 9))], [value("p", (4, 9)), value("best", (4,), INT64)])


def with_function() -> onnx.ModelProto:
    """x [3, 5] → y = relu(x @ w) twice, through a function that is local to the model."""
    body = [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["out"])]
    function = helper.make_function("local", "Layer", ["a", "b"], ["out"], body, [helper.make_opsetid("", OPSET)])
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["h"], name="first", domain="local"),
        helper.make_node("Layer", ["h", "w"], ["y"], name="second", domain="local"),
    ]
    return model(
        nodes,
        [value("x", (3, 5))],
        [value("y", (3, 5))],
        {"w": random_weight((5, 5))},
        domains={"local": 1},
        functions=[function],
    )


def old_opset() -> onnx.ModelProto:
    """An op-set 7 network as its exporters wrote it: IR version 3, weights listed as inputs, Sum, Dropout, Softmax."""
    weights = {"w": random_weight((4, 3, 3, 3)), "b": random_weight((4,), 5), "scale": random_weight((4,), 6) + 1}
    weights |= {"bias": random_weight((4,), 7), "mean": random_weight((4,), 8), "var": abs(random_weight((4,), 9)) + 1}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Sum", ["n", "c", "n"], ["s"], name="sum"),
        helper.make_node("Dropout", ["s"], ["d"], name="dropout", ratio=0.5),
        helper.make_node("Softmax", ["d"], ["y"], name="softmax"),
    ]
    inputs = [value("x", (1, 3, 7, 6)), *(value(name, array.shape) for name, array in weights.items())]
    old = model(nodes, inputs, [value("y", (1, 4, 5, 4))], weights, opset=7)
    old.ir_version = 3
    return old
