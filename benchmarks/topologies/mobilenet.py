"""MobileNetV2 (Sandler et al., 2018) as exporters write it: batch norms folded, ReLU6 as Clip, groups for depthwise."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from topologies.graph import CENTRED_GAIN, Graph, centre_rows

# Expansion, channels, blocks, stride of the first block: the paper's table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST_CHANNELS = 32
LAST_CHANNELS = 1280
CLASSES = 1000
IMAGE = 224

# What a block's output is scaled by where it is added to its input, so that the sums do not grow.
RESIDUAL_SCALE = 0.5


def mobilenet_v2(batch: int, rng: np.random.Generator) -> ModelProto:
    """Width 1.0 at 224 x 224: float32 [batch, 3, 224, 224] -> logits [batch, 1000]."""
    graph = Graph(rng)
    graph.constant("zero", np.array(0, np.float32))
    graph.constant("six", np.array(6, np.float32))
    x = _convolution(graph, "image", "first", 3, FIRST_CHANNELS, kernel=3, stride=2)
    x = _relu6(graph, x)
    channels = FIRST_CHANNELS
    for stage, (expansion, wider, blocks, stride) in enumerate(STAGES, start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}.block{block}"
            x = _inverted_residual(graph, x, name, channels, wider, expansion, stride if block == 1 else 1)
            channels = wider
    x = _relu6(graph, _convolution(graph, x, "last", channels, LAST_CHANNELS, gain=1))
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "features", axis=1)
    deviation = float(np.sqrt(CENTRED_GAIN / LAST_CHANNELS))
    weight = deviation * rng.standard_normal((CLASSES, LAST_CHANNELS))
    centre_rows(weight, LAST_CHANNELS)
    graph.constant("classifier.weight", weight.astype(np.float32))
    bias = graph.normal("classifier.bias", (CLASSES,), 0.1)
    graph.node("Gemm", [x, "classifier.weight", bias], "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, IMAGE, IMAGE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    return graph.model("mobilenet_v2", [image], [logits])


def _inverted_residual(graph: Graph, x: str, name: str, inputs: int, outputs: int, expansion: int, stride: int) -> str:
    """Widen, filter each channel for itself, narrow without ReLU6; added to what it read where the shapes allow."""
    wide = inputs * expansion
    y = x
    if expansion > 1:
        y = _relu6(graph, _convolution(graph, y, f"{name}.expand", inputs, wide, gain=1))
    y = _relu6(graph, _convolution(graph, y, f"{name}.depthwise", wide, wide, kernel=3, stride=stride, group=wide))
    added = stride == 1 and inputs == outputs
    gain = CENTRED_GAIN * RESIDUAL_SCALE**2 if added else CENTRED_GAIN
    y = _convolution(graph, y, f"{name}.project", wide, outputs, gain=gain)
    return graph.node("Add", [x, y], f"{name}.sum") if added else y


def _convolution(
    graph: Graph,
    x: str,
    name: str,
    inputs: int,
    outputs: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    group: int = 1,
    gain: float = CENTRED_GAIN,
) -> str:
    """A convolution that keeps height and width but for its stride; gain: 1 where what it reads has mean zero."""
    fan_in = inputs // group * kernel**2
    weight = np.sqrt(gain / fan_in) * graph.rng.standard_normal((outputs, inputs // group, kernel, kernel))
    centre_rows(weight, fan_in)
    graph.constant(f"{name}.weight", weight.astype(np.float32))
    bias = graph.normal(f"{name}.bias", (outputs,), 0.1)
    return graph.node(
        "Conv",
        [x, f"{name}.weight", bias],
        name,
        dilations=[1, 1],
        group=group,
        kernel_shape=[kernel, kernel],
        pads=[kernel // 2] * 4,
        strides=[stride, stride],
    )


def _relu6(graph: Graph, x: str) -> str:
    return graph.node("Clip", [x, "zero", "six"], f"{x}.relu6")
