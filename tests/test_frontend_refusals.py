"""What TVM's importer would compute wrongly is refused by name; the forms next to it are taken."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import BOOL, model, one_node, random_weight, value

from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler

ONES = np.ones(3, np.float32)


def batch_norm(**attributes):
    outputs = ("y", "m", "v") if attributes.get("training_mode") else ("y",)
    return one_node("BatchNormalization", ONES, ONES, ONES, ONES, shape=(2, 3, 4, 5), outputs=outputs, **attributes)


def layer_norm(used):
    node = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean"], name="the_node")
    outputs = [value("y", (2, 3)), *([value("mean", (2, 1))] if used else [])]
    return model([node], [value("x", (2, 3))], outputs, {"g": ONES})


def dropout(*, mask=False, training=None):
    weights = {"ratio": np.float32(0.5)} | ({} if training is None else {"training": np.array(training)})
    names = ["x", "ratio", *(["training"] if training is not None else [])]
    node = helper.make_node("Dropout", names, ["y", "mask"], name="the_node")
    outputs = [value("y", (2, 3)), *([value("mask", (2, 3), BOOL)] if mask else [])]
    return model([node], [value("x", (2, 3))], outputs, weights)


def shift(by):
    return one_node("BitShift", np.array(by, np.uint8), dtype=TensorProto.UINT8, direction="LEFT")


def reduce_nothing():
    nodes = [
        helper.make_node("Slice", ["x", "zero", "zero"], ["empty"]),
        helper.make_node("ReduceSum", ["empty"], ["y"], name="the_node"),
    ]
    return model(nodes, [value("x", (2, 3))], [value("y", None)], {"zero": np.array([0])})


def insert(position):
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "z"], ["pair"]),
        helper.make_node("SequenceInsert", ["pair", "x", "position"], ["three"], name="the_node"),
        helper.make_node("SequenceAt", ["three", "last"], ["y"]),
    ]
    weights = {"position": np.array(position), "last": np.array(1)}
    return model(nodes, [value("x", (2,)), value("z", (2,))], [value("y", (2,))], weights)


def transposed_conv(**attributes):
    return one_node("ConvTranspose", random_weight((1, 2, 3, 3)), shape=(1, 1, 3, 3), **attributes)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (dropout(training=True), "training mode"),
        (one_node("RandomNormalLike"), "random"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(graph, reason):
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_onnx(graph)
    assert reason in caught.value.message
    assert len(caught.value.operators) == 1
    assert "the_node" in caught.value.operators[0] and "op-set" in caught.value.operators[0]


@pytest.mark.parametrize(
    "graph",
    [
        batch_norm(),
        dropout(),
        dropout(mask=True),
        dropout(training=False),
        layer_norm(used=False),
        layer_norm(used=True),
        reduce_nothing(),
        insert(-1),
        one_node("IsInf", result=BOOL),
        insert(1),
        transposed_conv(strides=[3, 2]),
        transposed_conv(output_shape=[10, 8], strides=[3, 2]),
        one_node("Cast", to=TensorProto.FLOAT16, result=TensorProto.FLOAT16),
        one_node("Cast", to=TensorProto.FLOAT8E4M3FN, result=TensorProto.FLOAT8E4M3FN, opset=19),
        one_node("Cast", to=TensorProto.INT4, result=TensorProto.INT4, opset=21),
    ],
)
def test_the_form_next_to_a_refused_one_is_imported(graph):
    assert import_onnx(graph).signature.outputs[0].name == "y"


def test_all_refusals_come_at_once():
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["first"], name="first"),
        helper.make_node("Multinomial", ["x"], ["second"], name="second", sample_size=3),
    ]
    outputs = [value("first", (2, 3)), value("second", (2, 3), TensorProto.INT32)]
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_onnx(model(nodes, [value("x", (2, 3))], outputs))
    found = [name for line in caught.value.operators for name in ("first", "second") if name in line]
    assert found == ["first", "second"]
