"""Whole small networks in channels-last order: they compute what ONNX Runtime computes, and move next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from kernels import run_lowered
from onnx import helper
from onnx_models import model, random_weight, value

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
IMAGE = (2, 6, 13, 11)
INTO_NHWC, OUT_OF_NHWC = 1, 1

Node = onnx.NodeProto


def node(op_type: str, inputs: str, output: str, **attributes: object) -> Node:
    return helper.make_node(op_type, inputs.split(" "), output.split(" "), **attributes)


def conv(x: str, weight: str, output: str, **attributes: object) -> Node:
    return node("Conv", f"{x} {weight}", output, **attributes)


WEIGHTS = {
    "w": random_weight((8, 6, 3, 3), 1),
    "v": random_weight((8, 8, 1, 1), 2),
    "depthwise": random_weight((8, 1, 3, 3), 3),
    "grouped": random_weight((12, 2, 3, 3), 4),
    "channels": random_weight((8, 1, 1), 5),
    "columns": random_weight((11,), 6),
    "dense": random_weight((8, 5), 7),
    "scale": random_weight((8,), 8) + 1,
    "shift": random_weight((8,), 9),
    "mean": random_weight((8,), 10),
    "variance": abs(random_weight((8,), 11)) + 1,
    "zero": np.array(0, "f4"),
    "six": np.array(6, "f4"),
    "half": np.array(0.5, "f4"),
    "pads": np.array([0, 0, 1, 2, 0, 0, 2, 0]),
    "channel_pads": np.array([0, 1, 0, 0, 0, 3, 0, 0]),
    "shuffled": np.array([2, 2, 4, 13, 11]),
    "joined": np.array([2, 8, 13, 11]),
    "twice": np.array([1, 1, 2, 2], "f4"),
    "parts": np.array([3, 5]),
    "one": np.array([1]),
    "seven": np.array([7]),
    "two": np.array([2]),
    "spatial": np.array([2, 3]),
    "flat": np.array([2, -1]),
    "tokens": np.array([2, 8, -1]),
    "halves": np.array([2, 4, 2, 13, 11]),
    "index": np.array(1),
}

# name → the nodes between x and y, and what is left to move besides the input once and the output where it is an image.
NETWORKS: dict[str, tuple[list[Node], int]] = {
    "clip": ([conv("x", "w", "a"), node("Clip", "a zero six", "b"), conv("b", "depthwise", "y", group=8)], 0),
    "activations": (
        [
            conv("x", "w", "a"),
            node("HardSwish", "a", "b"),
            node("Sigmoid", "b", "c"),
            node("Mul", "b c", "d"),
            node("Elu", "d", "e"),
            node("PRelu", "e channels", "f"),
            node("LeakyRelu", "f", "g"),
            node("Erf", "g", "h"),
            node("Max", "h a half", "i"),
            conv("i", "v", "y"),
        ],
        0,
    ),
    "pools": (
        [
            conv("x", "w", "a", pads=[1, 1, 1, 1]),
            node("MaxPool", "a", "b", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
            node("AveragePool", "b", "c", kernel_shape=[2, 3], pads=[0, 1, 1, 0], count_include_pad=1),
            node("AveragePool", "c", "d", kernel_shape=[3, 2], pads=[1, 1, 1, 0], strides=[1, 2]),
            node("MaxPool", "d", "e", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
            conv("e", "v", "y"),
        ],
        0,
    ),
    "padding of pools and convolutions": (
        [
            conv("x", "w", "a", auto_pad="SAME_LOWER", strides=[2, 2]),
            node("Pad", "a pads", "b"),
            node("MaxPool", "b", "c", kernel_shape=[3, 3], strides=[2, 2]),
            node("Pad", "c channel_pads half", "d"),
            node("Pad", "d pads", "e", mode="edge"),
            conv("e", "grouped", "y", group=6, dilations=[2, 1]),
        ],
        0,
    ),
    "concat and slices of channels": (
        [
            conv("x", "w", "a"),
            conv("x", "w", "b", pads=[1, 1, 1, 1]),
            node("Split", "a parts", "d e", axis=1),
            node("Concat", "e d", "f", axis=1),
            node("Slice", "f one seven one", "g"),
            node("Concat", "g a", "h", axis=1),
            node("ReduceMean", "h", "m", axes=[2, 3], keepdims=1),
            node("Mul", "h m", "i"),
            node("Slice", "i zeros eight one", "j"),
            node("Flatten", "m", "k"),
            conv("j", "v", "y"),
        ],
        0,
    ),
    "squeeze and excite": (
        [
            conv("x", "w", "a"),
            node("GlobalAveragePool", "a", "b"),
            conv("b", "v", "c"),
            node("Relu", "c", "d"),
            conv("d", "v", "e"),
            node("HardSigmoid", "e", "f"),
            node("Mul", "f a", "y"),
        ],
        0,
    ),
    "broadcasts": (
        [
            conv("x", "w", "a", pads=[1, 1, 1, 1]),
            node("Mul", "a channels", "b"),
            node("Add", "columns b", "c"),
            node("Sub", "half c", "d"),
            node("Add", "d a", "e"),
            node("ReduceSum", "e one", "f", keepdims=0),
            node("Unsqueeze", "f one", "g"),
            node("Add", "g e", "y"),
        ],
        0,
    ),
    "batch norm behind a pool": (
        [
            conv("x", "w", "a"),
            node("MaxPool", "a", "b", kernel_shape=[2, 2]),
            node("BatchNormalization", "b scale shift mean variance", "c"),
            node("Relu", "c", "d"),
            conv("d", "v", "y"),
        ],
        0,
    ),
    "shuffled channels": (
        [
            conv("x", "w", "a", pads=[1, 1, 1, 1]),
            node("Reshape", "a shuffled", "b"),
            node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
            node("Reshape", "c joined", "d"),
            conv("d", "depthwise", "y", group=8),
        ],
        1,
    ),
    "resizing": (
        [
            conv("x", "w", "a"),
            node("Resize", "a  twice", "b", mode="nearest", nearest_mode="floor"),
            node("Resize", "b  twice", "c", mode="linear"),
            conv("c", "v", "y"),
        ],
        0,
    ),
    "depth and space": (
        [
            conv("x", "w", "a"),
            node("DepthToSpace", "a", "b", blocksize=2),
            node("SpaceToDepth", "b", "c", blocksize=2),
            conv("c", "v", "y"),
        ],
        1,
    ),
    "softmax over channels": (
        [
            conv("x", "w", "a"),
            node("Softmax", "a", "b", axis=1),
            node("LogSoftmax", "a", "c", axis=1),
            node("Add", "b c", "d"),
            conv("d", "v", "y"),
        ],
        0,
    ),
    "instance norm": (
        [
            conv("x", "w", "a"),
            node("InstanceNormalization", "a scale shift", "b"),
            node("Relu", "b", "c"),
            conv("c", "v", "y"),
        ],
        0,
    ),
    "transposes that cancel": (
        [
            conv("x", "w", "a"),
            node("Transpose", "a", "b", perm=[0, 2, 3, 1]),
            node("Relu", "b", "c"),
            node("Transpose", "c", "d", perm=[0, 3, 1, 2]),
            conv("d", "v", "y"),
        ],
        0,
    ),
    "classifier": (
        [
            conv("x", "w", "a"),
            node("GlobalAveragePool", "a", "b"),
            node("Flatten", "b", "c"),
            node("MatMul", "c dense", "y"),
        ],
        0,
    ),
    "classifier by reductions": (
        [conv("x", "w", "a"), node("ReduceMean", "a", "b", axes=[-1, -2], keepdims=0), node("MatMul", "b dense", "y")],
        0,
    ),
    "classifier of reshaped means": (
        [
            conv("x", "w", "a"),
            node("GlobalMaxPool", "a", "b"),
            node("Reshape", "b flat", "c"),
            node("Gemm", "c dense", "y", alpha=0.5),
        ],
        0,
    ),
    "tokens of patches": (
        [
            conv("x", "w", "a", strides=[3, 3]),
            node("Reshape", "a tokens", "b"),
            node("Transpose", "b", "c", perm=[0, 2, 1]),
            node("LayerNormalization", "c scale shift", "d"),
            node("MatMul", "d dense", "y"),
        ],
        0,
    ),
    "one of the halves": (
        [
            conv("x", "w", "a", pads=[1, 1, 1, 1]),
            node("Reshape", "a halves", "b"),
            node("Gather", "b index", "c", axis=2),
            node("ReduceMax", "c", "y", axes=[1], keepdims=0),
        ],
        0,
    ),
}


def network(nodes: Sequence[Node]) -> onnx.ModelProto:
    weights = WEIGHTS | {"zeros": np.array([0]), "eight": np.array([8])}
    used = {name for entry in nodes for name in entry.input}
    return model(
        nodes, [value("x", IMAGE)], [value("y", None)], {name: a for name, a in weights.items() if name in used}
    )


def moves(lowered: LoweredModel) -> int:
    """How many calls of kernels transpose something."""
    return sum(kernel.calls for kernel in lowered.kernels if "transpose" in kernel.name)


def check(graph: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> LoweredModel:
    imported = import_onnx(graph)
    lowered = lower(imported, NATIVE)
    outputs = run_lowered(lowered, NATIVE, [feeds[spec.name] for spec in imported.signature.inputs])
    for output, expected in zip(outputs, ReferenceSession(graph, threads=1).run(feeds).values(), strict=True):
        assert output.shape == expected.shape
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5 * max(1, float(np.abs(expected).max())))
    return lowered


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_moves_between_the_operators(name: str) -> None:
    nodes, left = NETWORKS[name]
    lowered = check(network(nodes), {"x": np.random.default_rng(0).standard_normal(IMAGE).astype("f4")})
    output = lowered.module["main"].ret_ty
    assert moves(lowered) == INTO_NHWC + left + (OUT_OF_NHWC if output.ndim == 4 else 0)
    assert not [kernel.name for kernel in lowered.kernels if kernel.name.startswith(("reshape", "squeeze", "expand"))]
