"""Valid models to break: the small ones of the tests, and one of each case of the ONNX project's suite of operators."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

import tests.onnx_models as models
from tests.onnx_models import FLOAT, INT64, model, value

Feeds = Mapping[str, np.ndarray]
Base = tuple[onnx.ModelProto, Feeds]


def small_models() -> list[Base]:
    """Several operators each, with weights, functions, branches, loops and shape arithmetic."""
    built = (
        models.conv_bn_relu(),
        models.mlp(),
        models.embedding(),
        models.two_outputs(),
        models.with_function(),
        models.old_opset(),
        shape_arithmetic(),
        branch_and_loop(),
    )
    return [(proto, {}) for proto in built]


def suite_models() -> list[Base]:
    """With the inputs that the suite gives them, where those are tensors; seconds to load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite's own reference computations overflow on purpose
        cases = sorted(load_model_tests(kind="node"), key=lambda case: case.name)
    found = []
    for case in cases:
        arrays = case.data_sets[0][0]
        pairs = zip(case.model.graph.input, arrays, strict=False)
        feeds = {entry.name: array for entry, array in pairs if isinstance(array, np.ndarray)}
        found.append((case.model, feeds))
    return found


def fix_inputs(proto: onnx.ModelProto, feeds: Feeds, draw: random.Random) -> None:
    """Make some inputs constants, in place, so that more is decided, and folded, at import: none, integers, or all."""
    kinds = draw.choice(["", "iu", "iub", "iubf"])
    named = {entry.name: entry for entry in proto.graph.input}
    for name, array in feeds.items():
        if array.dtype.kind in kinds and name in named:
            proto.graph.input.remove(named[name])
            proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def shape_arithmetic() -> onnx.ModelProto:
    """What an exporter makes of reshapes: Shape, Gather, Concat, Range, Expand, Tile, Pad, Slice."""
    weights = {
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "starts": np.array([1]),
        "ends": np.array([9]),
        "axes": np.array([1]),
        "steps": np.array([2]),
        "pads": np.array([0, 1, 2, 0]),
        "repeats": np.array([2, 3]),
        "filled": np.array([3, 1]),
        "from": np.array(0),
        "to": np.array(4),
        "by": np.array(1),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["rows"], axis=0),
        helper.make_node("Concat", ["rows", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Slice", ["flat", "starts", "ends", "axes", "steps"], ["cut"]),
        helper.make_node("Pad", ["cut", "pads"], ["padded"]),
        helper.make_node("Tile", ["padded", "repeats"], ["tiled"]),
        helper.make_node("ConstantOfShape", ["filled"], ["zeros"]),
        helper.make_node("Range", ["from", "to", "by"], ["r"]),
        helper.make_node("Cast", ["r"], ["rf"], to=FLOAT),
        helper.make_node("Expand", ["rf", "filled"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["zeros", "total"], ["column"]),
        helper.make_node("ReduceMean", ["column"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["tiled", "mean"], ["y"]),
    ]
    return model(nodes, [value("x", (3, 4, 5))], [value("y", None)], weights)


def branch_and_loop() -> onnx.ModelProto:
    """An If by a constant, a Loop of three and a Scan, with values of outside read inside."""
    then = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "then", [], [value("t", (2, 3))])
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["o"])], "else", [], [value("o", (2, 3))])
    takes = [value("i", (), INT64), value("ci", (), models.BOOL), value("vi", (2, 3))]
    inside = [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Mul", ["vi", "x"], ["vo"])]
    inside.append(helper.make_node("ReduceSum", ["vo"], ["each"], keepdims=0))
    gives = [value("co", (), models.BOOL), value("vo", (2, 3)), value("each", ())]
    loop = helper.make_graph(inside, "loop", takes, gives)
    adds = [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Identity", ["next"], ["kept"])]
    scan = helper.make_graph(
        adds, "scan", [value("state", (3,)), value("row", (3,))], [value("next", (3,)), value("kept", (3,))]
    )
    nodes = [
        helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["n", "flag", "chosen"], ["last", "sums"], body=loop),
        helper.make_node("Scan", ["start", "last"], ["end", "rows"], body=scan, num_scan_inputs=1),
        helper.make_node("ReduceSum", ["sums"], ["total"], keepdims=0),
        helper.make_node("Add", ["rows", "total"], ["y"]),
    ]
    weights = {"flag": np.array(True), "n": np.array(3), "start": np.ones(3, np.float32)}
    return model(nodes, [value("x", (2, 3))], [value("y", None), value("end", (3,))], weights)
