"""Convolutions and transposed convolutions of one to three dimensions, with all their attributes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper
from onnx_models import model, random_weight, value
from test_channels_last import check, moves

pytestmark = pytest.mark.compiler

CASES = {
    "1d": ("Conv", (2, 6, 17), (8, 6, 3), {"strides": [2], "pads": [2, 1]}),
    "1d of groups": ("Conv", (1, 6, 17), (9, 2, 4), {"group": 3, "dilations": [2]}),
    "1d depthwise": ("Conv", (1, 7, 17), (7, 1, 3), {"group": 7, "auto_pad": "SAME_UPPER", "strides": [3]}),
    "2d dilated": ("Conv", (2, 6, 13, 11), (8, 6, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 2, 3]}),
    "2d of groups": ("Conv", (1, 6, 9, 7), (4, 3, 1, 3), {"group": 2, "strides": [1, 2]}),
    "3d": ("Conv", (2, 3, 7, 6, 5), (4, 3, 3, 2, 3), {"strides": [2, 1, 1], "pads": [1, 0, 1, 0, 1, 1]}),
    "3d of groups": ("Conv", (1, 4, 5, 6, 5), (6, 2, 2, 2, 2), {"group": 2, "dilations": [1, 2, 1]}),
    "transposed 1d": ("ConvTranspose", (2, 6, 9), (6, 5, 4), {"strides": [3], "pads": [1, 2], "output_padding": [2]}),
    "transposed 1d dilated": ("ConvTranspose", (1, 3, 9), (3, 5, 3), {"strides": [2], "dilations": [3]}),
    "transposed": ("ConvTranspose", (2, 6, 5, 7), (6, 8, 3, 3), {}),
    "transposed by 2": ("ConvTranspose", (1, 6, 5, 7), (6, 8, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed with gaps": (
        "ConvTranspose",
        (1, 6, 5, 7),
        (6, 8, 2, 1),
        {"strides": [3, 2], "output_padding": [1, 1]},
    ),
    "transposed dilated": (
        "ConvTranspose",
        (1, 4, 5, 6),
        (4, 3, 3, 2),
        {"strides": [2, 1], "dilations": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 0]},
    ),
    "transposed dilated, of many taps": (
        "ConvTranspose",
        (1, 4, 5, 6),
        (4, 8, 5, 5),
        {"strides": [2, 2], "dilations": [3, 3]},
    ),
    "transposed of groups": ("ConvTranspose", (2, 6, 5, 7), (6, 4, 3, 3), {"group": 2, "strides": [2, 2]}),
    "transposed depthwise": ("ConvTranspose", (2, 6, 5, 7), (6, 1, 4, 4), {"group": 6, "strides": [2, 2]}),
    "transposed of one channel a group": ("ConvTranspose", (1, 3, 5, 7), (3, 2, 3, 3), {"group": 3}),
    "transposed, same": ("ConvTranspose", (1, 6, 5, 7), (6, 8, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "transposed 3d": (
        "ConvTranspose",
        (1, 4, 3, 4, 5),
        (4, 3, 3, 2, 2),
        {"strides": [2, 2, 1], "pads": [1, 0, 0, 0, 1, 0]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_with_bias_and_activation_agrees(case: str) -> None:
    op_type, shape, kernel, attributes = CASES[case]
    filters = kernel[0] if op_type == "Conv" else kernel[1] * attributes.get("group", 1)
    spread = np.float32(1 / math.sqrt(math.prod(kernel[2:])))
    weights = {"w": random_weight(kernel, 1) * spread, "b": random_weight((filters,), 2), "zero": np.array(0, "f4")}
    nodes = [
        helper.make_node(op_type, ["x", "w", "b"], ["c"], **attributes),
        helper.make_node("Clip", ["c", "zero"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["y"]),
    ]
    graph = model(nodes, [value("x", shape)], [value("y", None)], weights)
    lowered = check(graph, {"x": np.random.default_rng(0).standard_normal(shape).astype("f4")})
    names = [kernel.name for kernel in lowered.kernels]
    assert moves(lowered) == 2 or "group" in attributes, names
    fused = [name for name in names if "add" in name]
    assert len(fused) == 1 and fused[0].startswith(("fused_conv", "fused_sum_of_taps")), names


def test_two_convolutions_of_one_dimension_have_nothing_between_them() -> None:
    weights = {"w": random_weight((8, 6, 3), 1), "b": random_weight((8,), 2), "v": random_weight((5, 8, 3), 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "v"], ["y"]),
    ]
    graph = model(nodes, [value("x", (2, 6, 31))], [value("y", None)], weights)
    lowered = check(graph, {"x": np.random.default_rng(0).standard_normal((2, 6, 31)).astype("f4")})
    assert len(lowered.kernels) == 4


@pytest.mark.parametrize("added", [(2, 8, 13, 5), (1, 1, 1, 5), (5,)])
def test_what_is_added_may_repeat_the_result_of_a_convolution(added: tuple[int, ...]) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "b"], ["y"])]
    weights = {"w": random_weight((8, 6, 3, 3), 1)}
    graph = model(nodes, [value("x", (2, 6, 15, 3)), value("b", added)], [value("y", None)], weights)
    generator = np.random.default_rng(0)
    feeds = {
        name: generator.standard_normal(shape).astype("f4") for name, shape in (("x", (2, 6, 15, 3)), ("b", added))
    }
    assert any("conv2d" in kernel.name for kernel in check(graph, feeds).kernels)
