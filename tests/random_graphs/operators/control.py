"""Shape arithmetic, branches, loops of known length, sequences."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.random_graphs.graph import FLOATS, NUMBERS, Graph, Rejected, Tensor

_BRANCHES = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Add", "Mul")


def _element(tensor: Tensor) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def _body(g: Graph, x: Tensor, y: Tensor) -> tuple[list[onnx.NodeProto], str]:
    """One to three nodes on tensors of the graph around them, which keep x's shape."""
    nodes, last = [], x.name
    for _ in range(g.choices.integer(1, 3)):
        kind = g.choices.of(_BRANCHES)
        name = g.name("b")
        operands = [last, y.name] if kind in ("Add", "Mul") else [last]
        nodes.append(helper.make_node(kind, operands, [name]))
        last = name
    return nodes, last


def branch(g: Graph) -> Tensor:
    """If, on an input of the graph or on what is computed from one."""
    x = g.pick(FLOATS)
    y = g.weight(g.data(g.broadcast_to(x.shape), x.dtype))
    if np.broadcast_shapes(x.shape, y.shape) != x.shape:
        raise Rejected("grows")
    if g.choices.odds(0.5):
        condition = g.input(g.choices.of(((), (1,))), "bool")
    else:
        total = g.op("ReduceMax", [x], keepdims=0)
        condition = g.op("Greater", [total, g.scalar(0.5, x.dtype)])
    graphs = {}
    for side in ("then_branch", "else_branch"):
        nodes, last = _body(g, x, y)
        output = helper.make_tensor_value_info(last, _element(x), x.shape)
        graphs[side] = helper.make_graph(nodes, side, [], [output])
    name = g.name()
    node = helper.make_node("If", [condition.name], [name], **graphs)
    return g.emit([node], [condition, x, y], [name])[0]


def loop(g: Graph) -> Tensor:
    """Loop of a known number of trips: one carried tensor, one scanned output."""
    x = g.pick(FLOATS[:1], high=3)
    y = g.weight(g.normal((), x.dtype))
    going, trip, carried, stepped, scanned, kept = (g.name("b") for _ in range(6))
    inputs = [
        helper.make_tensor_value_info(trip, 7, []),
        helper.make_tensor_value_info(going, 9, []),
        helper.make_tensor_value_info(carried, _element(x), x.shape),
    ]
    nodes = [
        helper.make_node(g.choices.of(("Add", "Mul", "Sub")), [carried, y.name], [stepped]),
        helper.make_node(g.choices.of(("Tanh", "Relu", "Abs")), [stepped], [scanned]),
        helper.make_node("Identity", [going], [kept]),
    ]
    outputs = [helper.make_tensor_value_info(kept, 9, [])]
    outputs += [helper.make_tensor_value_info(name, _element(x), x.shape) for name in (stepped, scanned)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    names = [g.name(), g.name()]
    trips = g.scalar(g.choices.integer(1, 4), "int64")
    node = helper.make_node("Loop", [trips.name, "", x.name], names, body=body)
    return g.emit([node], [trips, x, y], names)[g.choices.integer(0, 1)]


def scan(g: Graph) -> Tensor:
    """Scan over the first axis: a running sum and what it was at each step."""
    x = g.pick(FLOATS[:1], low=2, high=3)
    if x.shape[0] > 8 or g.opset < 9:
        raise Rejected("too long")
    start = g.weight(g.normal(x.shape[1:], x.dtype))
    state, each, total, copy = (g.name("b") for _ in range(4))
    infos = [helper.make_tensor_value_info(name, _element(x), x.shape[1:]) for name in (state, each, total, copy)]
    nodes = [helper.make_node("Add", [state, each], [total]), helper.make_node("Tanh", [total], [copy])]
    body = helper.make_graph(nodes, "body", infos[:2], infos[2:])
    names = [g.name(), g.name()]
    backwards = {"scan_input_directions": [1]} if g.choices.odds(0.3) else {}
    node = helper.make_node("Scan", [start.name, x.name], names, body=body, num_scan_inputs=1, **backwards)
    return g.emit([node], [start, x], names)[g.choices.integer(0, 1)]


def shape_arithmetic(g: Graph) -> Tensor:
    """Reshape by a shape that is computed from the tensor's own."""
    x = g.pick(NUMBERS, low=2)
    shape = g.op("Shape", [x])
    keep = g.choices.integer(1, x.rank - 1)
    first = g.op("Gather", [shape, g.constant(list(range(keep)))], axis=0)
    if g.choices.odds(0.5):
        return g.op("Reshape", [x, g.op("Concat", [first, g.constant([-1])], axis=0)])
    rest = g.op("Gather", [shape, g.constant(list(range(keep, x.rank)))], axis=0)
    if g.opset >= 13 and g.choices.odds(0.4):
        merged = (
            g.op("ReduceProd", [rest], axes=[0], keepdims=1)
            if g.opset < 18
            else g.op("ReduceProd", [rest, g.constant([0])])
        )
        return g.op("Reshape", [x, g.op("Concat", [first, merged], axis=0)])
    return g.op("Reshape", [x, g.op("Concat", [rest, first], axis=0)])


def filled(g: Graph) -> Tensor:
    """ConstantOfShape or Expand by a tensor's shape, added to it."""
    x = g.pick(FLOATS)
    shape = g.op("Shape", [x])
    if g.choices.odds(0.5):
        value = numpy_helper.from_array(np.array([1.5], x.dtype))
        return g.op("Sub", [x, g.op("ConstantOfShape", [shape], value=value)])
    return g.op("Mul", [x, g.op("Expand", [g.weight(g.normal((), x.dtype)), shape])])


def positions(g: Graph) -> Tensor:
    """Range as long as an axis, compared or added: positions in a sequence."""
    x = g.pick(FLOATS, low=1)
    shape = g.op("Shape", [x])
    length = g.op("Gather", [shape, g.scalar(x.rank - 1, "int64")], axis=0)
    place = g.op("Range", [g.scalar(0, "int64"), length, g.scalar(1, "int64")])
    return g.op("Add", [x, g.op("Cast", [place], to=_element(x))])


def sequence(g: Graph) -> Tensor:
    """Tensors put into a sequence and taken out."""
    x = g.pick(FLOATS[:1], low=1)
    if g.opset < 11:
        raise Rejected("no sequences")
    y = g.weight(g.data(x.shape, x.dtype))
    made, out = g.name("s"), g.name()
    nodes = [helper.make_node("SequenceConstruct", [x.name, y.name], [made])]
    if g.choices.odds(0.5):
        axis = g.choices.integer(0, x.rank - 1)
        new_axis = g.choices.integer(0, 1)
        nodes.append(helper.make_node("ConcatFromSequence", [made], [out], axis=axis, new_axis=new_axis))
        return g.emit(nodes, [x, y], [out])[0]
    place = g.scalar(g.choices.of((0, 1, -1)), "int64")
    nodes.append(helper.make_node("SequenceAt", [made, place.name], [out]))
    return g.emit(nodes, [x, y, place], [out])[0]


OPERATORS = (
    branch, branch, loop, scan, shape_arithmetic, shape_arithmetic, shape_arithmetic, filled, positions, sequence,
)  # fmt: skip
