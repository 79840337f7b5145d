"""Rewrites Sum to a chain of Add: TVM imports Sum as stack and reduce, which no layout pass sees through."""

from __future__ import annotations

import onnx
from onnx import helper

from tvmbridge.frontend.walk import STANDARD_DOMAINS, graphs


def rewrite_sum(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: any model. After: no Sum; Identity stands for a Sum of one. Changes `model`."""
    taken = {name for graph in graphs(model) for node in graph.node for name in node.output}
    for graph in graphs(model):
        if not any(_is_sum(node) for node in graph.node):
            continue
        rewritten: list[onnx.NodeProto] = []
        for node in graph.node:
            rewritten.extend(_chain(node, taken) if _is_sum(node) else [node])
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
        del graph.node[:]
        graph.node.extend(copies)
    return model


def _is_sum(node: onnx.NodeProto) -> bool:
    return node.op_type == "Sum" and node.domain in STANDARD_DOMAINS


def _chain(node: onnx.NodeProto, taken: set[str]) -> list[onnx.NodeProto]:
    if len(node.input) == 1:
        return [helper.make_node("Identity", node.input, node.output, name=node.name)]
    chain = []
    total = node.input[0]
    for position, operand in enumerate(node.input[1:], 1):
        last = position == len(node.input) - 1
        made = node.output[0] if last else _fresh(f"{node.output[0]}/sum{position}", taken)
        name = node.name if last else f"{node.name}/sum{position}" if node.name else ""
        chain.append(helper.make_node("Add", [total, operand], [made], name=name))
        total = made
    return chain


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
