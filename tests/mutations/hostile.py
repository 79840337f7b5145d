"""Small models that ask for much: doubling functions and constants, deep nesting, cycles, tensors of terabytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx_models import BOOL, FLOAT, INT64, model, value

_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def _function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a"], ["b"], nodes, _OPSETS)


def _call(function: str, given: str, made: str) -> onnx.NodeProto:
    return helper.make_node(function, [given], [made], domain="local")


def _of_functions(functions: list[onnx.FunctionProto], called: str) -> onnx.ModelProto:
    one = [value("x", (2,))], [value("y", None)]
    return model([_call(called, "x", "y")], *one, functions=functions, domains={"local": 1})


def functions_that_double() -> onnx.ModelProto:
    """2^40 operators in forty functions that call the one before twice."""
    functions = [_function("f0", [helper.make_node("Neg", ["a"], ["b"])])]
    for i in range(1, 41):
        functions.append(_function(f"f{i}", [_call(f"f{i - 1}", "a", "c"), _call(f"f{i - 1}", "c", "b")]))
    return _of_functions(functions, "f40")


def a_function_that_calls_itself() -> onnx.ModelProto:
    return _of_functions([_function("f", [_call("f", "a", "b")])], "f")


def functions_that_call_each_other() -> onnx.ModelProto:
    return _of_functions([_function("f", [_call("g", "a", "b")]), _function("g", [_call("f", "a", "b")])], "f")


def functions_in_a_row(length: int = 3000) -> onnx.ModelProto:
    functions = [_function("f0", [helper.make_node("Neg", ["a"], ["b"])])]
    functions += [_function(f"f{i}", [_call(f"f{i - 1}", "a", "b")]) for i in range(1, length)]
    return _of_functions(functions, f"f{length - 1}")


def constants_that_double() -> onnx.ModelProto:
    """A constant of 2^45 elements, by forty-five concatenations."""
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(45)]
    nodes += [helper.make_node("ReduceSum", ["c45"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    return model(nodes, [value("x", (2,))], [value("y", None)], {"c0": np.ones(1, np.float32)})


def values_that_double() -> onnx.ModelProto:
    """The same of values that only the run knows."""
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(45)]
    nodes = [helper.make_node("Neg", ["x"], ["c0"]), *nodes, helper.make_node("ReduceSum", ["c45"], ["y"])]
    return model(nodes, [value("x", (2,))], [value("y", None)])


def _one_huge(node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    last = [helper.make_node("ReduceMax", ["huge"], ["m"]), helper.make_node("Cast", ["m"], ["f"], to=FLOAT)]
    last.append(helper.make_node("Add", ["x", "f"], ["y"]))
    return model([node, *last], [value("x", (2,))], [value("y", None)], weights)


def a_constant_of_terabytes() -> onnx.ModelProto:
    return _one_huge(helper.make_node("ConstantOfShape", ["n"], ["huge"]), {"n": np.array([1 << 40])})


def a_range_of_terabytes() -> onnx.ModelProto:
    weights = {"a": np.array(0), "b": np.array(1 << 40), "d": np.array(1)}
    return _one_huge(helper.make_node("Range", ["a", "b", "d"], ["huge"]), weights)


def a_tile_of_terabytes() -> onnx.ModelProto:
    return _one_huge(helper.make_node("Tile", ["x", "n"], ["huge"]), {"n": np.array([1 << 40])})


def an_expansion_of_terabytes() -> onnx.ModelProto:
    weights = {"n": np.array([1 << 40, 2]), "w": np.ones(2, np.float32)}
    return _one_huge(helper.make_node("Expand", ["w", "n"], ["huge"]), weights)


def a_padding_of_terabytes() -> onnx.ModelProto:
    return _one_huge(helper.make_node("Pad", ["x", "n"], ["huge"]), {"n": np.array([1 << 40, 0])})


def a_shape_that_overflows() -> onnx.ModelProto:
    weights = {"n": np.array([1 << 31, 1 << 31, 1 << 31])}
    return _one_huge(helper.make_node("ConstantOfShape", ["n"], ["huge"]), weights)


def a_one_hot_of_terabytes() -> onnx.ModelProto:
    weights = {"i": np.array([1, 2]), "n": np.array(1 << 40), "v": np.array([0, 1], np.float32)}
    return _one_huge(helper.make_node("OneHot", ["i", "n", "v"], ["huge"]), weights)


def an_eye_of_terabytes() -> onnx.ModelProto:
    node = helper.make_node("EyeLike", ["w"], ["huge"])
    made = _one_huge(node, {"n": np.array([1 << 20, 1 << 20])})
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["n"], ["w"]))
    return made


def noise_of_terabytes() -> onnx.ModelProto:
    return _one_huge(helper.make_node("RandomNormal", [], ["huge"], shape=[1 << 40]), {})


_BIG = 1 << 31


def a_constant_of_gigabytes() -> onnx.ModelProto:
    """This and the next: within what a tensor may be, and far beyond what an import should compute."""
    return _one_huge(helper.make_node("ConstantOfShape", ["n"], ["huge"]), {"n": np.array([_BIG])})


def a_range_of_gigabytes() -> onnx.ModelProto:
    weights = {"a": np.array(0), "b": np.array(_BIG), "d": np.array(1)}
    return _one_huge(helper.make_node("Range", ["a", "b", "d"], ["huge"]), weights)


def a_tile_of_gigabytes() -> onnx.ModelProto:
    weights = {"w": np.ones(2, np.float32), "n": np.array([_BIG // 2])}
    return _one_huge(helper.make_node("Tile", ["w", "n"], ["huge"]), weights)


def a_padding_of_gigabytes() -> onnx.ModelProto:
    weights = {"w": np.ones(2, np.float32), "n": np.array([_BIG, 0])}
    return _one_huge(helper.make_node("Pad", ["w", "n"], ["huge"]), weights)


def a_resize_of_gigabytes() -> onnx.ModelProto:
    weights = {"w": np.ones((1, 1, 2, 2), np.float32), "n": np.array([1, 1, 1 << 16, 1 << 15])}
    return _one_huge(helper.make_node("Resize", ["w", "", "", "n"], ["huge"]), weights)


def an_outer_product_of_gigabytes() -> onnx.ModelProto:
    weights = {"a": np.ones((1 << 16, 1), np.float32), "b": np.ones((1, 1 << 15), np.float32)}
    return _one_huge(helper.make_node("Mul", ["a", "b"], ["huge"]), weights)


def a_window_of_gigabytes() -> onnx.ModelProto:
    return _one_huge(helper.make_node("HannWindow", ["n"], ["huge"]), {"n": np.array(_BIG)})


def constants_that_double_to_gigabytes() -> onnx.ModelProto:
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(31)]
    nodes += [helper.make_node("ReduceSum", ["c31"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    return model(nodes, [value("x", (2,))], [value("y", None)], {"c0": np.ones(1, np.float32)})


def a_loop_that_collects_gigabytes() -> onnx.ModelProto:
    """A constant of 4 MiB two thousand times."""
    nodes = [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Identity", ["w"], ["each"])]
    takes = [value("i", (), INT64), value("ci", (), BOOL)]
    body = helper.make_graph(nodes, "body", takes, [value("co", (), BOOL), value("each", (1 << 20,))])
    return _one_huge(
        helper.make_node("Loop", ["n", ""], ["huge"], body=body),
        {"n": np.array(2000), "w": np.ones(1 << 20, np.float32)},
    )


def a_sequence_of_gigabytes() -> onnx.ModelProto:
    """A constant of 4 MiB two thousand times, joined."""
    made = _one_huge(
        helper.make_node("ConcatFromSequence", ["s"], ["huge"], axis=0), {"w": np.ones(1 << 20, np.float32)}
    )
    made.graph.node.insert(0, helper.make_node("SequenceConstruct", ["w"] * 2000, ["s"]))
    return made


def loops_in_loops(depth: int = 4) -> onnx.ModelProto:
    """A thousand times a thousand times a thousand …"""
    body_nodes = [helper.make_node("Identity", ["c0"], ["o0"]), helper.make_node("Neg", ["v0"], ["w0"])]
    for level in range(depth):
        takes = [value(f"i{level}", (), INT64), value(f"c{level}", (), BOOL), value(f"v{level}", (2,))]
        gives = [value(f"o{level}", (), BOOL), value(f"w{level}", (2,))]
        body = helper.make_graph(body_nodes, f"body{level}", takes, gives)
        start = f"v{level + 1}" if level + 1 < depth else "x"
        made = f"w{level + 1}" if level + 1 < depth else "y"
        body_nodes = [helper.make_node("Loop", ["n", "", start], [made], body=body)]
        if level + 1 < depth:
            body_nodes.append(helper.make_node("Identity", [f"c{level + 1}"], [f"o{level + 1}"]))
    return model(body_nodes, [value("x", (2,))], [value("y", (2,))], {"n": np.array(1000)})


def a_sparse_constant_of_terabytes() -> onnx.ModelProto:
    values = helper.make_tensor("v", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", INT64, [1], [3])
    sparse = helper.make_sparse_tensor(values, indices, [1 << 40])
    return _one_huge(helper.make_node("Constant", [], ["huge"], sparse_value=sparse), {})


def a_sparse_constant_of_gigabytes() -> onnx.ModelProto:
    values = helper.make_tensor("v", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", INT64, [1], [_BIG - 1])
    sparse = helper.make_sparse_tensor(values, indices, [_BIG])
    return _one_huge(helper.make_node("Constant", [], ["huge"], sparse_value=sparse), {})


def a_sparse_constant_past_its_end() -> onnx.ModelProto:
    values = helper.make_tensor("v", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", INT64, [1], [1 << 40])
    sparse = helper.make_sparse_tensor(values, indices, [7])
    return _one_huge(helper.make_node("Constant", [], ["huge"], sparse_value=sparse), {})


def an_axis_past_all_counting() -> onnx.ModelProto:
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"], axis=1 << 31)
    return model([node], [value("x", (2, 3))], [value("y", None)], {"w": np.ones(3, np.float32)})


def batch_dimensions_below_zero() -> onnx.ModelProto:
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=-7)
    return model([node], [value("x", (2, 3))], [value("y", None)], {"i": np.array([[1]])})


def batch_dimensions_below_zero_of_an_old_op_set() -> onnx.ModelProto:
    """Which is upgraded first."""
    made = batch_dimensions_below_zero()
    made.opset_import[0].version = 12
    return made


def a_split_into_more_than_there_is() -> onnx.ModelProto:
    node = helper.make_node("Split", ["x"], ["y", "z"], num_outputs=1)
    return model([node], [value("x", (4,))], [value("y", None), value("z", None)], opset=18)


def an_input_of_terabytes() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return model(nodes, [value("x", (1 << 40,))], [value("y", (1 << 40,))])


def an_input_past_all_counting() -> onnx.ModelProto:
    shape = (1 << 40, 1 << 40, 1 << 40)
    return model([helper.make_node("Relu", ["x"], ["y"])], [value("x", shape)], [value("y", shape)])


def branches_in_branches(depth: int = 28) -> onnx.ModelProto:
    """An If in an If in an If …, which no condition decides."""
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["b0"])], "g0", [], [value("b0", (2,))])
    for i in range(1, depth):
        node = helper.make_node("If", ["c"], [f"b{i}"], then_branch=inner, else_branch=_leaf(f"l{i}"))
        inner = helper.make_graph([node], f"g{i}", [], [value(f"b{i}", (2,))])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=_leaf("l"))
    return model([node], [value("x", (2,)), value("c", (), BOOL)], [value("y", (2,))])


def _leaf(name: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Abs", ["x"], [name])], name, [], [value(name, (2,))])


def types_in_types(depth: int = 300) -> onnx.ModelProto:
    kind = helper.make_tensor_type_proto(FLOAT, (2,))
    for _ in range(depth):
        kind = helper.make_sequence_type_proto(kind)
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x", (2,))], [value("y", (2,))])
    made.graph.input[0].type.CopyFrom(kind)
    return made


def _loop(count: str, weights: dict[str, np.ndarray], inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Neg", ["vi"], ["vo"])]
    takes = [value("i", (), INT64), value("ci", (), BOOL), value("vi", (2,))]
    body = helper.make_graph(nodes, "body", takes, [value("co", (), BOOL), value("vo", (2,))])
    node = helper.make_node("Loop", [count, "", "x"], ["y"], body=body)
    return model([node], [value("x", (2,)), *inputs], [value("y", (2,))], weights)


def a_loop_without_end() -> onnx.ModelProto:
    return _loop("", {}, [])


def a_loop_of_a_trillion() -> onnx.ModelProto:
    return _loop("n", {"n": np.array(1 << 40)}, [])


def a_long_chain(length: int = 3000) -> onnx.ModelProto:
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    return model(nodes, [value("t0", (2,))], [value(f"t{length}", (2,))])


def a_wide_sum(width: int = 3000) -> onnx.ModelProto:
    return model([helper.make_node("Sum", ["x"] * width, ["y"])], [value("x", (2,))], [value("y", (2,))])


def a_cycle() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    return model(nodes, [value("x", (2,))], [value("b", (2,))])


def a_node_that_reads_itself() -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", "y"], ["y"])], [value("x", (2,))], [value("y", (2,))])


def a_window_past_all_counting() -> onnx.ModelProto:
    big = 1 << 40
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[big, big], pads=[big, big, big, big])
    return model([node], [value("x", (1, 2, 5, 5))], [value("y", None)])


def strides_of_nothing() -> onnx.ModelProto:
    """Division by zero, where nobody looks."""
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 0])
    return model([node], [value("x", (1, 2, 5, 5))], [value("y", None)])


def groups_of_nothing() -> onnx.ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=0)
    weights = {"w": np.ones((2, 2, 3, 3), np.float32)}
    return model([node], [value("x", (1, 2, 5, 5))], [value("y", None)], weights)


def blocks_of_nothing() -> onnx.ModelProto:
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=0)
    return model([node], [value("x", (1, 4, 5, 5))], [value("y", None)])


def a_reshape_by_nothing() -> onnx.ModelProto:
    weights = {"s": np.array([0, -1])}
    return model([helper.make_node("Reshape", ["x", "s"], ["y"])], [value("x", (0, 3))], [value("y", None)], weights)


def steps_of_nothing() -> onnx.ModelProto:
    weights = {"a": np.array(0), "b": np.array(3), "d": np.array(0)}
    return _one_huge(helper.make_node("Range", ["a", "b", "d"], ["huge"]), weights)


def integers_divided_by_zero() -> onnx.ModelProto:
    """SIGFPE on x86, in whoever folds it."""
    nodes = [helper.make_node("Div", ["a", "z"], ["q"]), helper.make_node("Cast", ["q"], ["f"], to=FLOAT)]
    nodes.append(helper.make_node("Add", ["x", "f"], ["y"]))
    return model(nodes, [value("x", (2,))], [value("y", None)], {"a": np.array([7, 8]), "z": np.array([0, 0])})


def the_least_integer_by_minus_one() -> onnx.ModelProto:
    made = integers_divided_by_zero()
    arrays = {"a": np.array([-(2**63), 8]), "z": np.array([-1, -1])}
    for tensor in made.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return made


def the_rest_by_zero() -> onnx.ModelProto:
    made = integers_divided_by_zero()
    made.graph.node[0].op_type = "Mod"
    return made


def an_index_out_of_range() -> onnx.ModelProto:
    weights = {"w": np.ones((3, 2), np.float32), "i": np.array([1 << 40])}
    nodes = [helper.make_node("Gather", ["w", "i"], ["g"]), helper.make_node("Add", ["x", "g"], ["y"])]
    return model(nodes, [value("x", (1, 2))], [value("y", (1, 2))], weights)


def a_sparse_weight_of_terabytes() -> onnx.ModelProto:
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", (2,))], [value("y", None)])
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", INT64, [1], [3])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))
    return made


def a_weight_of_nothing_but_claims() -> onnx.ModelProto:
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", (2,))], [value("y", None)])
    made.graph.initializer.append(TensorProto(name="w", data_type=FLOAT, dims=[1 << 40]))
    return made


def names_of_a_megabyte() -> onnx.ModelProto:
    name = "n" * (1 << 20)
    nodes = [helper.make_node("Neg", ["x"], [name], name=name), helper.make_node("Neg", [name], ["y"])]
    return model(nodes, [value("x", (2,))], [value("y", (2,))])


def names_of_anything() -> onnx.ModelProto:
    odd = 'a/b\n"; \\0 %s {x} \u202e 𝄞'
    nodes = [helper.make_node("Neg", [odd], ["../../y"], name=odd)]
    return model(nodes, [value(odd, (2,))], [value("../../y", (2,))])


HOSTILE: tuple[Callable[[], onnx.ModelProto], ...] = (
    functions_that_double,
    a_function_that_calls_itself,
    functions_that_call_each_other,
    functions_in_a_row,
    constants_that_double,
    values_that_double,
    a_constant_of_terabytes,
    a_range_of_terabytes,
    a_tile_of_terabytes,
    an_expansion_of_terabytes,
    a_padding_of_terabytes,
    a_shape_that_overflows,
    a_one_hot_of_terabytes,
    an_eye_of_terabytes,
    noise_of_terabytes,
    a_sparse_constant_of_terabytes,
    a_sparse_constant_past_its_end,
    a_sparse_constant_of_gigabytes,
    an_axis_past_all_counting,
    batch_dimensions_below_zero,
    batch_dimensions_below_zero_of_an_old_op_set,
    a_split_into_more_than_there_is,
    loops_in_loops,
    an_input_of_terabytes,
    an_input_past_all_counting,
    branches_in_branches,
    types_in_types,
    a_loop_without_end,
    a_loop_of_a_trillion,
    a_long_chain,
    a_wide_sum,
    a_cycle,
    a_node_that_reads_itself,
    a_window_past_all_counting,
    strides_of_nothing,
    groups_of_nothing,
    blocks_of_nothing,
    a_reshape_by_nothing,
    steps_of_nothing,
    integers_divided_by_zero,
    the_least_integer_by_minus_one,
    the_rest_by_zero,
    an_index_out_of_range,
    a_sparse_weight_of_terabytes,
    a_weight_of_nothing_but_claims,
    names_of_a_megabyte,
    names_of_anything,
)

# The run of these may take what they ask for, but not their import.
LARGE: tuple[Callable[[], onnx.ModelProto], ...] = (
    a_constant_of_gigabytes,
    a_range_of_gigabytes,
    a_tile_of_gigabytes,
    a_padding_of_gigabytes,
    a_resize_of_gigabytes,
    an_outer_product_of_gigabytes,
    a_window_of_gigabytes,
    constants_that_double_to_gigabytes,
    a_loop_that_collects_gigabytes,
    a_sequence_of_gigabytes,
)
