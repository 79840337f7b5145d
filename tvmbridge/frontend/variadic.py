"""Rewrites Sum, Mean, Max and Min to chains of binary operators.

TVM imports them as stack and reduce, even those of two tensors: no layout pass sees through that, and of scalars it
kills the process. Max and Min become Where of a comparison, and not TVM's maximum: a NaN in either operand has to come
through, as it does in ONNX Runtime, and the layout passes know Where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.frontend.walk import STANDARD_DOMAINS, graphs

_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})
_COMPARISONS = {"Max": "Greater", "Min": "Less"}
_VARIADIC = frozenset({"Sum", "Mean", *_COMPARISONS})


class _Names:
    """Makes names of values that the model does not have yet."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = {name for graph in graphs(model) for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for graph in graphs(model) for tensor in graph.initializer}

    def fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def rewrite_variadic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: inferred types. After: no Sum, Mean, Max or Min but such of unknown type. Changes `model`."""
    types = _types(model)
    names = _Names(model)
    for graph in graphs(model):
        if not any(_is_variadic(node, types) for node in graph.node):
            continue
        rewritten: list[onnx.NodeProto] = []
        for node in graph.node:
            rewritten.extend(_chain(node, types[node.output[0]], names) if _is_variadic(node, types) else [node])
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
        del graph.node[:]
        graph.node.extend(copies)
    return model


def _types(model: onnx.ModelProto) -> dict[str, int]:
    return {
        value.name: value.type.tensor_type.elem_type
        for graph in graphs(model)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
    }


def _is_variadic(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    return node.op_type in _VARIADIC and node.domain in STANDARD_DOMAINS and node.output[0] in types


def _chain(node: onnx.NodeProto, dtype: int, names: _Names) -> Iterator[onnx.NodeProto]:
    """The nodes that stand for `node`; the last one has its name and makes its output."""
    step = _steps(node, dtype, names)
    total = node.input[0]
    made: list[onnx.NodeProto] = []
    for position, operand in enumerate(node.input[1:], 1):
        result = names.fresh(f"{node.output[0]}/{node.op_type.lower()}{position}")
        made += step(total, operand, result)
        total = result
    if node.op_type == "Mean" and len(node.input) > 1:
        count = numpy_helper.from_array(np.array(len(node.input), helper.tensor_dtype_to_np_dtype(dtype)))
        divisor, mean = names.fresh(f"{node.output[0]}/count"), names.fresh(f"{node.output[0]}/mean")
        made.append(helper.make_node("Constant", [], [divisor], value=count))
        made.append(helper.make_node("Div", [total, divisor], [mean]))
    if not made:
        made.append(helper.make_node("Identity", [total], [""]))
    made[-1].output[0] = node.output[0]
    made[-1].name = node.name
    yield from made


_Step = Callable[[str, str, str], list[onnx.NodeProto]]


def _steps(node: onnx.NodeProto, dtype: int, names: _Names) -> _Step:
    """What makes the nodes that put two operands together: (left, right, name of the result) → nodes."""
    comparison = _COMPARISONS.get(node.op_type)

    def add(left: str, right: str, result: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Add", [left, right], [result])]

    def choose(left: str, right: str, result: str) -> list[onnx.NodeProto]:
        takes_left = names.fresh(f"{result}/{str(comparison).lower()}")
        nodes = [helper.make_node(str(comparison), [left, right], [takes_left])]
        if dtype in _FLOATS:  # a NaN on the right is taken as it is, since it compares as false
            odd, either = names.fresh(f"{result}/nan"), names.fresh(f"{result}/left")
            nodes.append(helper.make_node("IsNaN", [left], [odd]))
            nodes.append(helper.make_node("Or", [takes_left, odd], [either]))
            takes_left = either
        return [*nodes, helper.make_node("Where", [takes_left, left, right], [result])]

    return add if comparison is None else choose
