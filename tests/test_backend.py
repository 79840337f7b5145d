"""tvmbridge.backend as code written against onnx.backend uses it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.backend.base
import pytest
from onnx import TensorProto, helper

from tvmbridge import backend
from tvmbridge.errors import InputError, TargetError, TvmBridgeError

pytestmark = pytest.mark.compiler


def make_model(nodes, inputs, outputs, initializers=()):
    entries = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in e] for e in (inputs, outputs)]
    graph = helper.make_graph(nodes, "backend", *entries, initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 21)])


def matmul(rows):
    weight = np.random.default_rng(1).standard_normal((5, 7), dtype=np.float32)
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [("x", TensorProto.FLOAT, [rows, 5]), ("w", TensorProto.FLOAT, [5, 7])],
        [("z", TensorProto.FLOAT, None), ("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return model, weight


def test_it_is_an_onnx_backend():
    assert issubclass(backend.Backend, onnx.backend.base.Backend)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")


def test_outputs_come_in_the_models_order_and_initializers_need_not_be_given():
    model, weight = matmul(3)
    x = np.random.default_rng(2).standard_normal((3, 5), dtype=np.float32)
    z, y = backend.run_model(model, [x])
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z, np.maximum(y, 0))


def test_inputs_may_be_a_list_a_dict_or_the_array_alone():
    prepared = backend.prepare(matmul(3)[0])
    x = np.random.default_rng(3).standard_normal((3, 5), dtype=np.float32)
    expected = prepared.run([x])
    for given in ({"x": x}, x, (x,)):
        for one, other in zip(prepared.run(given), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_open_dimension_is_compiled_once_for_each_size():
    model, weight = matmul("n")
    prepared = backend.prepare(model)
    assert prepared.used is None
    used = []
    for rows in (2, 13, 2):
        x = np.random.default_rng(rows).standard_normal((rows, 5), dtype=np.float32)
        np.testing.assert_allclose(prepared.run([x])[1], x @ weight, rtol=1e-5, atol=1e-6)
        used.append(prepared.used)
    assert used[0] is used[2] and used[0] is not used[1]
    assert prepared.bound == () and prepared.used.computes


def reshape_to_an_input():
    nodes = [helper.make_node("Mul", ["x", "x"], ["squares"]), helper.make_node("Reshape", ["squares", "to"], ["y"])]
    inputs = [("x", TensorProto.FLOAT, ["n", 6]), ("to", TensorProto.INT64, [2]), ("unused", TensorProto.INT64, [1])]
    return make_model(nodes, inputs, [("y", TensorProto.FLOAT, None)])


def test_exactly_the_inputs_whose_values_decide_shapes_are_bound_and_others_compile_anew():
    prepared = backend.prepare(reshape_to_an_input())
    used = []
    for rows, to in ((2, [4, 3]), (2, [3, 4]), (2, [4, 3]), (4, [-1, 8])):
        x = np.random.default_rng(rows).standard_normal((rows, 6), dtype=np.float32)
        (y,) = prepared.run([x, np.array(to), np.array([7])])
        np.testing.assert_array_equal(y, (x * x).reshape(to))
        assert prepared.bound == ("to",) and prepared.used.computes
        used.append(prepared.used)
    assert used[0] is used[2] and len({id(one) for one in used}) == 3


def test_a_model_whose_every_input_is_bound_leaves_nothing_to_compute():
    node = helper.make_node("ConstantOfShape", ["to"], ["y"])
    model = make_model([node], [("to", TensorProto.INT64, [2])], [("y", TensorProto.FLOAT, None)])
    prepared = backend.prepare(model)
    np.testing.assert_array_equal(prepared.run([np.array([2, 3])])[0], np.zeros((2, 3), np.float32))
    assert prepared.bound == ("to",) and not prepared.used.computes


def test_what_shapes_decide_leaves_nothing_to_compute():
    model = make_model(
        [helper.make_node("Shape", ["x"], ["y"])], [("x", TensorProto.FLOAT, [3, 5])], [("y", TensorProto.INT64, [2])]
    )
    prepared = backend.prepare(model)
    np.testing.assert_array_equal(prepared.run([np.zeros((3, 5), np.float32)])[0], [3, 5])
    assert not prepared.used.computes


def test_a_node_runs_alone_with_and_without_a_description_of_its_outputs():
    x = np.random.default_rng(4).standard_normal((2, 3, 11), dtype=np.float32)
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    expected = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    for described in (None, [(np.float32, x.shape)]):
        (y,) = backend.run_node(node, [x], outputs_info=described, opset_version=13)
        np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_node_may_name_an_input_twice_or_not_at_all():
    x = np.array([-2.0, 0.5, 3.0], np.float32)
    np.testing.assert_array_equal(backend.run_node(helper.make_node("Mul", ["x", "x"], ["y"]), [x])[0], x * x)
    clipped = backend.run_node(helper.make_node("Clip", ["x", "", "high"], ["y"]), [x, np.float32(1)])
    np.testing.assert_array_equal(clipped[0], np.minimum(x, 1))


@pytest.mark.parametrize("inputs", [[], [np.zeros(1, np.float32)] * 2, {"w": np.zeros((5, 7), np.float32)}])
def test_inputs_that_are_not_the_models_are_refused(inputs):
    with pytest.raises(InputError, match=r"arrays? given"):
        backend.prepare(matmul(3)[0]).run(inputs)


def test_a_device_other_than_the_cpu_is_refused():
    with pytest.raises(TargetError, match="CUDA"):
        backend.prepare(matmul(3)[0], "CUDA")
    assert not backend.is_compatible(matmul(3)[0], "CUDA")


def test_a_model_with_open_dimensions_is_compatible_and_one_that_is_refused_is_not():
    assert backend.is_compatible(matmul("n")[0])
    strings = make_model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.STRING, [2])], [("y", TensorProto.STRING, [2])]
    )
    assert not backend.is_compatible(strings)
    with pytest.raises(TvmBridgeError, match=r"'x'"):
        backend.prepare(strings)
