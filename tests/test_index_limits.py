"""The limits of inputs that are indices: only those that every element must keep bind the signature."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import BOOL, FLOAT, INT64, embedding, model, random_weight, value

import tvmbridge
from tvmbridge.errors import InputError
from tvmbridge.frontend import import_onnx
from tvmbridge.frontend.index_limits import find_index_limits
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession, random_inputs

pytestmark = pytest.mark.compiler

TABLE = random_weight((10, 3))


def limit_of(*nodes, shape=(5,), dtype=INT64, more=(), **weights) -> int | None:
    inputs = [value("ids", shape, dtype), *more]
    graph = model(nodes, inputs, [value("y", None)], {"table": TABLE, **weights})
    return import_onnx(graph).signature.inputs[0].index_limit


def gather(name: str = "i", **attributes):
    return helper.make_node("Gather", ["table", name], ["y"], **attributes)


def test_only_the_input_that_looks_up_has_a_limit():
    signature = import_onnx(embedding(rows=23)).signature
    assert [(spec.name, spec.index_limit) for spec in signature.inputs] == [("ids", 23), ("mask", None)]


def test_the_axis_decides_and_movement_without_loss_is_followed():
    moved = [
        helper.make_node("Cast", ["ids"], ["wide"], to=INT64),
        helper.make_node("Unsqueeze", ["wide", "axes"], ["row"]),
        helper.make_node("Transpose", ["row"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["i"], axis=0),
    ]
    assert limit_of(*moved, gather(), dtype=TensorProto.INT32, axes=np.array([0])) == 10
    assert limit_of(*moved, gather(axis=1), dtype=TensorProto.INT32, axes=np.array([0])) == 3


@pytest.mark.parametrize(
    "changed",
    [
        helper.make_node("Min", ["ids", "nine"], ["i"]),
        helper.make_node("Slice", ["ids", "zero", "two"], ["i"]),
        helper.make_node("Where", ["c", "ids", "nine"], ["i"]),
        helper.make_node("Mod", ["ids", "nine"], ["i"]),
        helper.make_node("Gather", ["ids", "two"], ["i"]),
    ],
    ids=lambda node: node.op_type,
)
def test_what_the_model_clamps_masks_or_cuts_off_has_no_limit(changed):
    constants = {"nine": np.array([9]), "zero": np.array([0]), "two": np.array([2])}
    used = {name: array for name, array in constants.items() if name in changed.input}
    more = [value("c", (5,), BOOL)] if "c" in changed.input else []
    assert limit_of(changed, gather(), more=more, **used) is None


def test_a_cast_that_loses_values_has_no_limit():
    through = [
        helper.make_node("Cast", ["ids"], ["set"], to=BOOL),
        helper.make_node("Cast", ["set"], ["i"], to=INT64),
    ]
    assert limit_of(*through, gather()) is None


def test_one_hot_takes_any_index_but_is_drawn_within_its_depth():
    node = helper.make_node("OneHot", ["ids", "depth", "values"], ["y"])
    weights = {"depth": np.array(6), "values": TABLE[0, :2]}
    graph = model([node], [value("ids", (5,), INT64)], [value("y", None)], weights).graph
    assert find_index_limits(graph, ["ids"], certain=True) == {}
    assert find_index_limits(graph, ["ids"], certain=False) == {"ids": 6}


def test_a_tuple_of_indices_has_a_limit_where_its_axes_agree():
    node = helper.make_node("GatherND", ["d", "ids"], ["y"])
    for shape, limit in (((4, 4, 9), 4), ((5, 4, 9), None)):
        graph = model([node], [value("ids", (3, 2), INT64)], [value("y", None, FLOAT)], {"d": random_weight(shape)})
        assert import_onnx(graph).signature.inputs[0].index_limit == limit


def test_random_inputs_keep_the_limits_of_the_signature_without_a_source():
    signature = import_onnx(embedding(rows=23)).signature
    ids = np.concatenate([random_inputs(None, signature, seed=seed)["ids"].ravel() for seed in range(20)])
    assert set(ids) == set(range(23))


@pytest.mark.slow
def test_a_bundle_refuses_an_index_out_of_range_and_takes_a_negative_one(tmp_path):
    graph = embedding(rows=23)
    tvmbridge.build(import_onnx(graph), [parse_preset("native")], tmp_path / "m.tvmb", tune=False)
    feeds = {"ids": np.arange(-7, 7).reshape(2, 7), "mask": np.ones((2, 7), np.int64)}
    with tvmbridge.load(tmp_path / "m.tvmb") as session:
        expected = ReferenceSession(graph).run(feeds)["states"]
        np.testing.assert_allclose(session.run(feeds)["states"], expected, rtol=1e-6)
        for wrong in (23, -24, 10**10):
            with pytest.raises(InputError, match=f"'ids': {wrong} is no index of 23 elements"):
                session.run({**feeds, "ids": np.full((2, 7), wrong)})
