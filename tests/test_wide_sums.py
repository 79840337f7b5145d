"""float16 adds up in float32, as ONNX Runtime does it."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import run_lowered
from onnx import TensorProto, helper
from onnx_models import model, random_weight, value

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession, compare_outputs

pytestmark = pytest.mark.compiler

HALF = TensorProto.FLOAT16
NATIVE = parse_preset("native")
ULP = 2.0**-11  # half of a step of float16, relative


@pytest.mark.parametrize(
    ("op_type", "weight", "shape", "attributes"),
    [
        ("MatMul", (1024, 96), (33, 1024), {}),
        ("Conv", (32, 64, 3, 3), (1, 64, 9, 7), {"pads": [1, 1, 1, 1]}),
        ("Conv", (64, 1, 3, 3), (1, 64, 5, 6), {"group": 64}),
        ("Conv", (32, 64, 3), (1, 64, 50), {"strides": [2]}),
        ("Conv", (4, 64, 3, 3, 3), (1, 64, 5, 6, 7), {}),
        ("ConvTranspose", (64, 8, 3, 3), (1, 64, 5, 6), {"strides": [2, 2]}),
        ("Softmax", None, (7, 501), {}),
        ("ReduceSum", None, (1, 8, 31, 16), {}),
        ("ReduceMean", None, (1, 8, 31, 16), {}),
        ("GlobalAveragePool", None, (1, 8, 31, 16), {}),
        ("AveragePool", None, (1, 3, 19, 17), {"kernel_shape": [9, 9]}),
    ],
)
def test_long_sums_are_right_to_the_last_step(op_type, weight, shape, attributes):
    weights = {} if weight is None else {"w": random_weight(weight).astype("f2")}
    nodes = [helper.make_node(op_type, ["x", *weights], ["y"], **attributes)]
    graph = model(nodes, [value("x", shape, HALF)], [value("y", None, HALF)], weights)
    x = (np.random.default_rng(0).standard_normal(shape) + 0.5).astype("f2")
    imported = import_onnx(graph)
    (output,) = run_lowered(lower(imported, NATIVE), NATIVE, [x])
    comparison = compare_outputs(ReferenceSession(graph).run({"x": x}), {"y": output}, imported.signature)
    assert comparison.passes(2 * ULP), comparison.worst
