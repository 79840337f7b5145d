"""ONNX Runtime's own operators: each of ours gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tvmbridge import backend
from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend.contrib import DOMAIN

pytestmark = pytest.mark.compiler


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(limits.min, limits.max + 1, shape, dtype)


def scale(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


def zero(value: int, dtype: str = "uint8", *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype)


def one_node(
    op_type: str, arrays: Sequence[np.ndarray | None], *, fed: int = 1, outputs: int = 1, **attributes: object
) -> onnx.ModelProto:
    """A model of one node; the first `fed` of its given operands are inputs, the others weights."""
    names = ["" if array is None else f"x{k}" for k, array in enumerate(arrays)]
    given = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(given[name].dtype), given[name].shape)
        for name in list(given)[:fed]
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in list(given.items())[fed:]]
    results = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op_type, names, results, name="node", domain=DOMAIN, **attributes)
    ends = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph([node], "graph", inputs, ends, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    references = session.run(None, {entry.name: given[entry.name] for entry in inputs})
    for entry, value in zip(graph.output, references, strict=True):
        number = helper.np_dtype_to_tensor_dtype(value.dtype)
        entry.CopyFrom(helper.make_tensor_value_info(entry.name, number, value.shape))
    model.graph.CopyFrom(graph)
    return model


def assert_same(model: onnx.ModelProto, arrays: Sequence[np.ndarray | None]) -> None:
    """Floats within 1e-5 of the greatest, integers within one step."""
    feeds = [array for array in arrays if array is not None][: len(model.graph.input)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    references = session.run(None, dict(zip((entry.name for entry in model.graph.input), feeds, strict=True)))
    for result, reference in zip(backend.run_model(model, feeds), references, strict=True):
        assert (result.dtype, result.shape) == (reference.dtype, reference.shape)
        if reference.dtype.kind == "f":
            assert np.abs(result - reference).max() <= 1e-5 * max(np.abs(reference).max(), 1)
        else:
            assert np.abs(result.astype(np.int64) - reference).max() <= 1
            assert np.unique(reference).size > 1 or reference.size < 8


A, B = codes(3, 5, 7), codes(3, 5, 7, seed=1)
QUANTISED = (scale(0.05), zero(120)), (scale(0.1), zero(60))
SIGNED = [codes(3, 11, dtype="int8"), scale(0.04), zero(-5, "int8"), scale(0.02), zero(9, "int8")]
MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32)
HIDDEN = (random(2, 5, 12), random(12, 36, seed=1) * 0.5, random(36, seed=2))
PAST = random(2, 2, 3, 4, 4, seed=5)
HEADS = tuple(random(2, 5, 12, seed=seed) for seed in range(3))

CASES = {
    "BiasGelu": ([random(3, 5), random(5)], {}),
    "Gelu": ([random(3, 5)], {}),
    "FastGelu": ([random(3, 5), random(5)], {}),
    "FastGelu, no bias": ([random(3, 5)], {}),
    "QuickGelu": ([random(3, 5)], {"alpha": 1.5}),
    "FusedMatMul": ([random(2, 5, 3), random(2, 7, 5)], {"alpha": 0.5, "transA": 1, "transB": 1}),
    "FusedMatMul, batches last": ([random(5, 2, 3), random(2, 3, 7)], {"transBatchA": 1, "fed": 2}),
    "FusedGemm": ([random(3, 5), random(7, 5), random(7)], {"transB": 1, "alpha": 0.5, "activation": "Relu"}),
    "FusedGemm, leaky": (
        [random(3, 5), random(5, 7), random(7)],
        {"activation": "LeakyRelu", "activation_alpha": 0.2, "beta": 2.0},
    ),
    "FusedConv": ([random(1, 3, 7, 6), random(4, 3, 3, 3), random(4)], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "FusedConv, added": (
        [random(1, 3, 7, 6), random(4, 3, 3, 3), random(4), random(1, 4, 5, 4)],
        {"activation": "LeakyRelu", "activation_params": [0.3]},
    ),
    "SkipLayerNormalization": ([random(2, 3, 8), random(2, 3, 8, seed=1), random(8), random(8, seed=1)], {}),
    "SkipLayerNormalization, bias": (
        [random(2, 3, 8), random(2, 3, 8, seed=1), random(8), random(8, seed=1), random(8, seed=2)],
        {"epsilon": 1e-3},
    ),
    "SkipSimplifiedLayerNormalization": ([random(2, 3, 8), random(2, 3, 8, seed=1), random(8), random(8, seed=2)], {}),
    "EmbedLayerNormalization": (
        [
            np.array([[1, 4, 2], [0, 3, 1]], np.int32),
            np.array([[0, 1, 1], [0, 0, 1]], np.int32),
            *(random(rows, 8) for rows in (5, 6, 2)),
            random(8, seed=1),
            random(8, seed=2),
            np.array([[1, 1, 0], [1, 1, 1]], np.int32),
        ],
        {"fed": 2, "outputs": 2},
    ),
    "Trilu": ([random(2, 4, 5), np.array(1)], {"upper": 0}),
    "Pad": ([random(2, 3), np.array([1, 0, 0, 2]), np.array([0.5], np.float32)], {}),
    "QLinearAdd": ([A, *QUANTISED[0], B, *QUANTISED[1], scale(0.15), zero(100)], {}),
    "QLinearMul": ([A, *QUANTISED[0], B[0, :, :1], *QUANTISED[1], scale(0.9), zero(100)], {}),
    "QLinearSigmoid": ([codes(3, 11), scale(0.05), zero(100), scale(1 / 256), zero(0)], {}),
    "QLinearSigmoid, signed": ([*SIGNED[:3], scale(1 / 256), zero(-128, "int8")], {}),
    "QLinearLeakyRelu": (SIGNED, {"alpha": 0.2}),
    "QLinearGlobalAveragePool": ([codes(2, 3, 5, 7), *QUANTISED[0], scale(0.01), zero(128)], {}),
    "QLinearGlobalAveragePool, channels last": (
        [codes(2, 5, 7, 3), *QUANTISED[0], scale(0.01), zero(128)],
        {"channels_last": 1},
    ),
    "QLinearAveragePool": (
        [codes(2, 3, 5, 7), *QUANTISED[0], scale(0.03), zero(128)],
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]},
    ),
    "QLinearConcat": ([scale(0.1), zero(90), A, *QUANTISED[0], B, *QUANTISED[1]], {"axis": 1, "fed": 3}),
    "QLinearSoftmax": ([codes(3, 11), scale(0.05), zero(100), scale(1 / 256), zero(0)], {"axis": -1, "opset": 13}),
    "QLinearSoftmax, old": ([A, scale(0.03), zero(100), scale(1 / 256), zero(0)], {"axis": 1, "opset": 11}),
    "QLinearWhere": (
        [random(3, 5, 7) > 0, A, *QUANTISED[0], B, *QUANTISED[1], scale(0.15), zero(100)],
        {"fed": 2},
    ),
    "QGemm": (
        [
            *(codes(3, 5), scale(0.05), zero(100), codes(7, 5, dtype="int8"), random(7) ** 2, zero(0, "int8", 7)),
            *(codes(7, dtype="int8").astype(np.int32), scale(2.0), zero(120)),
        ],
        {"transB": 1, "alpha": 0.5},
    ),
    "QGemm, real": (
        [codes(3, 5), scale(0.05), zero(100), codes(5, 7, dtype="int8"), scale(0.1), zero(3, "int8")],
        {},
    ),
    "MatMulIntegerToFloat": (
        [codes(3, 5), codes(5, 7), scale(0.1), scale(0.2), zero(9), zero(130), random(7)],
        {},
    ),
    "DynamicQuantizeMatMul": ([random(3, 5), codes(5, 7), scale(0.2), zero(130), random(7)], {}),
    "MatMulNBits": (
        [random(3, 40), codes(7, 3, 8), random(21), codes(7 * 2)],
        {"K": 40, "N": 7, "bits": 4, "block_size": 16},
    ),
    "MatMulNBits, no zero points": (
        [random(2, 3, 32), codes(5, 2, 8), random(10)],
        {"K": 32, "N": 5, "bits": 4, "block_size": 16},
    ),
    "MatMulNBits, bytes": ([random(3, 32), codes(5, 1, 32), random(5)], {"K": 32, "N": 5, "bits": 8, "block_size": 32}),
    "QuantizeLinear": ([random(3, 5) * 4, scale(0.05), zero(-300, "int16")], {}),
    "DequantizeLinear": ([codes(3, 5, dtype="uint16"), random(5) ** 2, zero(9, "uint16", 5)], {}),
    "Attention": ([*HIDDEN], {"num_heads": 3}),
    "Attention, causal": ([*HIDDEN], {"num_heads": 3, "unidirectional": 1}),
    "Attention, mask": ([*HIDDEN, MASK], {"num_heads": 3}),
    "Attention, lengths": ([*HIDDEN, MASK.sum(1, dtype=np.int32)], {"num_heads": 3}),
    "Attention, ends and starts": ([*HIDDEN, np.array([5, 4, 1, 0], np.int32)], {"num_heads": 3}),
    "Attention, sizes": (
        [HIDDEN[0], random(12, 30), random(30)],
        {"num_heads": 3, "qkv_hidden_sizes": [12, 12, 6], "scale": 0.3},
    ),
    "Attention, past": ([*HIDDEN, None, PAST], {"num_heads": 3, "unidirectional": 1, "outputs": 2}),
    "Attention, extra": ([*HIDDEN, None, None, random(2, 3, 5, 5)], {"num_heads": 3}),
    "MultiHeadAttention": ([*HEADS], {"num_heads": 3, "fed": 3}),
    "MultiHeadAttention, bias and padding": ([*HEADS, random(36), MASK], {"num_heads": 3}),
    "MultiHeadAttention, causal": ([*HEADS, None, None, random(1, 3, 5, 5)], {"num_heads": 3, "unidirectional": 1}),
    "MultiHeadAttention, past": (
        [*HEADS, None, None, None, PAST[0], PAST[1]],
        {"num_heads": 3, "outputs": 3},
    ),
    "MultiHeadAttention, cross": (
        [HEADS[0], random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)],
        {"num_heads": 3},
    ),
    "RotaryEmbedding": (
        [random(2, 3, 8), np.array([[0, 1, 2], [4, 5, 6]]), random(9, 2), random(9, 2, seed=1)],
        {"num_heads": 2},
    ),
    "RotaryEmbedding, from a place on": (
        [random(2, 3, 8), np.array([4]), random(9, 2), random(9, 2, seed=1)],
        {"interleaved": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_of_onnx_runtime_gives_what_it_gives_there(name: str) -> None:
    arrays, attributes = CASES[name]
    model = one_node(name.partition(",")[0], arrays, **attributes)
    assert_same(model, arrays)


def test_what_is_not_supported_is_refused_by_name() -> None:
    model = one_node("FusedConv", [random(1, 3, 5, 5), random(2, 3, 3, 3)])
    model.graph.node[0].attribute.append(helper.make_attribute("activation", "Cos"))
    with pytest.raises(UnsupportedOperatorError, match=r"'Cos' is not known"):
        backend.prepare(model, device="CPU").run([random(1, 3, 5, 5)])
