"""Models with If: each branch computes what ONNX Runtime does, with weights of its own and of the graph around it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import BOOL, model, random_weight, value

import tvmbridge
from tvmbridge.frontend import import_onnx
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = [pytest.mark.compiler, pytest.mark.slow]


def branch(name: str, seed: int, inner: tuple[onnx.GraphProto, onnx.GraphProto] | None = None) -> onnx.GraphProto:
    """relu(x @ shared) @ own weight, then tanh or a choice inside."""
    own = numpy_helper.from_array(random_weight((5, 5), seed), f"{name}_w")
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], [f"{name}_h"]),
        helper.make_node("Relu", [f"{name}_h"], [f"{name}_r"]),
        helper.make_node("MatMul", [f"{name}_r", f"{name}_w"], [f"{name}_p"]),
        helper.make_node("Tanh", [f"{name}_p"], [f"{name}_t"])
        if inner is None
        else helper.make_node("If", ["deep"], [f"{name}_t"], then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Add", [f"{name}_t", f"{name}_p"], [f"{name}_o"]),
    ]
    return helper.make_graph(nodes, name, [], [value(f"{name}_o", (3, 5))], [own])


def convolution(name: str, seed: int) -> onnx.GraphProto:
    own = numpy_helper.from_array(random_weight((8, 8, 3, 3), seed), f"{name}_w")
    nodes = [
        helper.make_node("Conv", ["h", f"{name}_w"], [f"{name}_c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", [f"{name}_c"], [f"{name}_o"]),
    ]
    return helper.make_graph(nodes, name, [], [value(f"{name}_o", (1, 8, 9, 7))], [own])


def matrices() -> onnx.ModelProto:
    inner = branch("b", 2), branch("c", 3)
    choice = helper.make_node("If", ["wide"], ["m"], then_branch=branch("a", 1, inner), else_branch=branch("d", 4))
    inputs = [value("x", (3, 7)), value("wide", (), BOOL), value("deep", (), BOOL)]
    weights = {"shared": random_weight((7, 5)), "last": random_weight((5, 64), 5)}
    return model([choice, helper.make_node("MatMul", ["m", "last"], ["y"])], inputs, [value("y", None)], weights)


def convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("If", ["wide"], ["m"], then_branch=convolution("a", 1), else_branch=convolution("b", 2)),
        helper.make_node("Conv", ["m", "last"], ["y"]),
    ]
    weights = {"first": random_weight((8, 3, 3, 3)), "last": random_weight((4, 8, 1, 1), 5)}
    return model(nodes, [value("x", (1, 3, 9, 7)), value("wide", (), BOOL)], [value("y", None)], weights)


@pytest.mark.parametrize("build", [matrices, convolutions], ids=lambda build: build.__name__)
def test_every_way_through_the_branches_is_computed_rightly(build, tmp_path):
    graph = build()
    tvmbridge.build(import_onnx(graph), [parse_preset("native")], tmp_path / "m.tvmb", tune=False)
    reference = ReferenceSession(graph, threads=1)
    results = []
    with tvmbridge.load(tmp_path / "m.tvmb") as session:
        x = np.random.default_rng(0).standard_normal(session.inputs[0].shape).astype(np.float32)
        for wide, deep in [(True, True), (True, False), (False, False)]:
            choices = {"x": x, "wide": np.array(wide), "deep": np.array(deep)}
            feeds = {spec.name: choices[spec.name] for spec in session.inputs}
            results.append(session.run(feeds)["y"])
            np.testing.assert_allclose(results[-1], reference.run(feeds)["y"], rtol=1e-4, atol=1e-5)
    assert np.abs(results[0] - results[-1]).max() > 1e-2
