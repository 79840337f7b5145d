"""Indices that the model computes stay within their tensors; those in range, and negative ones, mean what ONNX says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tvm
from kernels import run_lowered
from onnx import helper
from onnx_models import INT64, model, random_weight, value
from tvm import relax

from tvmbridge.frontend import ImportedModel, import_onnx
from tvmbridge.lowering import lower
from tvmbridge.lowering.safe_indices import safe_indices
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
CUBE, TABLE = (5, 4, 9), (6, 7)


def computed(op_type: str, table: tuple[int, ...], indices: tuple, updates: tuple | None = None, **attributes: object):
    """A model that indexes with i * k: what the indices are, only the run decides."""
    weights = {"d": random_weight(table)} | ({} if updates is None else {"u": random_weight(updates, 1)})
    nodes = [
        helper.make_node("Mul", ["i", "k"], ["j"]),
        helper.make_node(op_type, ["d", "j", *(["u"] if updates else [])], ["y"], **attributes),
    ]
    inputs = [value("i", np.shape(indices), INT64), value("k", (1,), INT64)]
    return model(nodes, inputs, [value("y", None)], weights), np.array(indices)


CASES = {
    "Gather": computed("Gather", CUBE, ((0, -1, 3, -4),), axis=1),
    "GatherElements": computed("GatherElements", TABLE, ((0, -1, 6, -7), (1, 2, 3, 4)), axis=1),
    "GatherND": computed("GatherND", CUBE, ((0, -1), (-5, 3), (4, -4))),
    "GatherND of a batch": computed("GatherND", CUBE, ((3,), (-4,), (0,), (-1,), (2,)), batch_dims=1),
    "ScatterElements": computed("ScatterElements", TABLE, ((0, -1, 5, -5), (1, 2, 3, 4)), (2, 4), axis=1),
    "ScatterND": computed("ScatterND", CUBE, ((0, -1), (-5, 3), (4, -3)), (3, 9)),
}


def run(imported: ImportedModel, feeds: dict[str, np.ndarray]) -> np.ndarray:
    arrays = [feeds[spec.name] for spec in imported.signature.inputs]
    return run_lowered(lower(imported, NATIVE), NATIVE, arrays)[0]


@pytest.mark.parametrize("case", CASES)
def test_indices_in_range_give_what_the_reference_gives(case: str) -> None:
    graph, indices = CASES[case]
    feeds = {"i": indices, "k": np.array([1])}
    np.testing.assert_array_equal(run(import_onnx(graph), feeds), ReferenceSession(graph).run(feeds)["y"])


@pytest.mark.parametrize("case", CASES)
def test_indices_far_out_of_range_reach_only_the_tensor(case: str) -> None:
    graph, indices = CASES[case]
    imported = import_onnx(graph)
    known = np.concatenate([np.frombuffer(weight.raw_data, "f4") for weight in graph.graph.initializer])
    for factor in (10**10, -(10**10), 101):
        found = run(imported, {"i": indices, "k": np.array([factor])})
        assert set(found.ravel()) <= set(known)


def regions(images: list[int]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    node = helper.make_node("RoiAlign", ["x", "r", "j"], ["y"], output_height=2, output_width=3, sampling_ratio=2)
    inputs = [value("x", (2, 3, 16, 17)), value("r", (4, 4)), value("i", (4,), INT64), value("k", (1,), INT64)]
    graph = model([helper.make_node("Mul", ["i", "k"], ["j"]), node], inputs, [value("y", None)])
    corners = np.array([[0, 0, 9, 9], [1, 2, 8, 12], [3, 3, 5, 5], [0, 1, 15, 15]], "f4")
    x = generator.standard_normal((2, 3, 16, 17)).astype("f4")
    return graph, {"x": x, "r": corners, "i": np.array(images), "k": np.array([1])}


def test_regions_of_images_out_of_the_batch_are_read_from_within() -> None:
    graph, feeds = regions([0, 1, 1, 0])
    imported = import_onnx(graph)
    last = ReferenceSession(graph).run({**feeds, "i": np.array([0, 1, 1, 0])})["y"]
    np.testing.assert_allclose(run(imported, feeds), last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(imported, {**feeds, "k": np.array([10**8])}), last, rtol=1e-5, atol=1e-6)


def test_constant_indices_in_range_cost_nothing() -> None:
    nodes = [helper.make_node("GatherElements", ["x", "i"], ["y"])]
    weights = {"i": np.array([[1, -2, 0]])}
    imported = import_onnx(model(nodes, [value("x", (2, 3))], [value("y", None)], weights))
    calls: list[str] = []
    relax.analysis.post_order_visit(
        safe_indices(imported.module)["main"], lambda e: calls.append(e.op.name) if isinstance(e, relax.Call) else None
    )
    assert "relax.minimum" not in calls and "relax.gather_elements" in calls


def test_no_fast_take_is_left() -> None:
    module = safe_indices(import_onnx(CASES["Gather"][0]).module)
    modes: list[str] = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and expr.op == tvm.ir.Op.get("relax.take"):
            modes.append(str(expr.attrs.mode))

    relax.analysis.post_order_visit(module["main"], visit)
    assert modes and "fast" not in modes
