"""A smaller graph that goes wrong in the same way: fewer outputs, and inputs in the place of what made them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx

from tests.random_graphs.draw import Drawn
from tests.random_graphs.reference import Reference, ReferenceError, make_model, reads

_TRIES = 60


def shrink(drawn: Drawn, is_wrong: Callable[[Drawn], bool]) -> Drawn:
    """The smallest graph found that is wrong still. Each step is judged: `is_wrong` is asked a few dozen times."""
    values = _all_values(drawn)
    best, tries = drawn, 0
    changed = True
    while changed and tries < _TRIES:
        changed = False
        for candidate in _smaller(best, values):
            tries += 1
            if is_wrong(candidate):
                best, changed = candidate, True
                break
            if tries >= _TRIES:
                break
    return best


def without(drawn: Drawn, part: Drawn) -> Drawn | None:
    """The graph without a part of it: what that gives out comes in. None where nothing is left."""
    given = {output.name for output in part.model.graph.output}
    outputs = [output.name for output in drawn.model.graph.output if output.name not in given]
    return _cut(drawn, _all_values(drawn), outputs, given)


def _all_values(drawn: Drawn) -> dict[str, np.ndarray]:
    """Every tensor of the graph, as ONNX Runtime computes it."""
    model = onnx.ModelProto()
    model.CopyFrom(drawn.model)
    there = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in there:
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    found = Reference(model).run(drawn.feeds)
    return {name: np.asarray(value) for name, value in found.items() if isinstance(value, (np.ndarray, np.generic))}


def _smaller(drawn: Drawn, values: dict[str, np.ndarray]) -> list[Drawn]:
    """Graphs with one output only, or with one computed tensor given as an input; the smallest first."""
    outputs = [output.name for output in drawn.model.graph.output]
    computed = [name for node in drawn.model.graph.node for name in node.output if node.op_type != "Constant"]
    found: list[Drawn | None] = []
    if len(outputs) > 1:
        found += [_cut(drawn, values, [name]) for name in outputs]
    for name in computed:
        if name in values and name not in outputs:
            found.append(_cut(drawn, values, [name]))
            below = _cut(drawn, values, outputs, {name})
            found.append(below if below is not None and name in below.feeds else None)
    size = len(drawn.model.graph.node)
    smaller = [each for each in found if each is not None and len(each.model.graph.node) < size]
    alone = [each for each in found if each is not None and len(each.model.graph.node) == size]
    return sorted(smaller, key=lambda each: len(each.model.graph.node)) + alone[:1] * (len(outputs) > 1)


def _cut(drawn: Drawn, values: dict[str, np.ndarray], outputs: list[str], given: Collection[str] = ()) -> Drawn | None:
    """The part that `outputs` need, with the tensors `given` as inputs; None where that is no model."""
    nodes: list[onnx.NodeProto] = []
    needed = set(outputs)
    for node in reversed(drawn.model.graph.node):
        if needed & (set(node.output) - set(given)):
            nodes.insert(0, node)
            needed |= reads(node)
    if not nodes:
        return None
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in drawn.model.graph.initializer if c.name in needed}
    feeds = {name: value for name, value in drawn.feeds.items() if name in needed}
    feeds |= {name: values[name] for name in given if name in needed}
    expected = {name: values[name] for name in outputs}
    opset = drawn.model.opset_import[0].version
    try:
        model = make_model(nodes, feeds, constants, expected, opset)
        return Drawn(model, feeds, Reference(model).run(feeds))
    except ReferenceError:
        return None
