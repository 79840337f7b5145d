"""An ONNX model as plain values and arrays, which a Python without onnx can read; with its idioms recognised.

What exporters spell out in ONNX's small operators, who writes PyTorch by hand calls by one name: a dense layer is
`linear`, GELU is `gelu`, attention is `scaled_dot_product_attention`, an average over a whole image has no window. The
comparison is with such code, so the patterns are replaced here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator: ONNX's, or "Linear" (x, weight [out, in], bias), "Gelu" (x), "Attention" (q, kᵀ, v; `scale`)."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PlainGraph:
    """A model. inputs: by name the dtype; opset: of ONNX's own domain; constants: by name, weights and all others."""

    opset: int
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]


def write_plain_graph(model: onnx.ModelProto, folder: Path) -> None:
    """Write the model into `folder`, for `torch_network.read_network`: graph.json and constants.npz."""
    graph = recognise_idioms(plain_graph(model))
    names = list(graph.constants)
    described = {**dataclasses.asdict(dataclasses.replace(graph, constants={})), "constants": names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.json").write_text(json.dumps(described))
    # By number: names of tensors may hold what a member of an archive may not.
    np.savez(folder / "constants.npz", **{f"c{index}": graph.constants[name] for index, name in enumerate(names)})


def plain_graph(model: onnx.ModelProto) -> PlainGraph:
    """The model's graph; nodes that read constants alone are computed."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shapes = _shapes(model)
    nodes = []
    for proto in model.graph.node:
        if all(name in constants for name in proto.input):
            results = ReferenceEvaluator(proto).run(None, {name: constants[name] for name in proto.input})
            constants.update(zip(proto.output, results, strict=True))
            continue
        attributes = {each.name: _plain(onnx.helper.get_attribute_value(each)) for each in proto.attribute}
        node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes)
        nodes.append(_whole_average(node, shapes) or node)
    return _without_unused(
        PlainGraph(
            opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
            inputs={
                value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                for value in model.graph.input
                if value.name not in constants
            },
            outputs=tuple(value.name for value in model.graph.output),
            nodes=tuple(nodes),
            constants=constants,
        )
    )


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}


def _whole_average(node: Node, shapes: Mapping[str, Sequence[int]]) -> Node | None:
    """GlobalAveragePool for an AveragePool whose one window covers all of the image."""
    if node.operator != "AveragePool" or node.attributes.get("count_include_pad", 0):
        return None
    extents, results = shapes[node.inputs[0]][2:], shapes[node.outputs[0]][2:]
    begins = node.attributes.get("pads", [0] * 2 * len(extents))[: len(extents)]
    windows = zip(node.attributes["kernel_shape"], extents, begins, strict=True)
    if any(extent != 1 for extent in results) or any(kernel - begin < extent for kernel, extent, begin in windows):
        return None
    return Node("GlobalAveragePool", node.inputs, node.outputs, {})


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, (int, float, str)) else list(value)


def recognise_idioms(graph: PlainGraph) -> PlainGraph:
    """The graph with its dense layers, GELUs and attentions as one node each."""
    for replace in (_replace_linear, _replace_gelu, _replace_attention):
        graph = _without_unused(replace(graph))
    return graph


class _Readers:
    """Which node makes a value, and whether only one node reads it."""

    def __init__(self, graph: PlainGraph) -> None:
        self._maker = {name: node for node in graph.nodes for name in node.outputs}
        read = [name for node in graph.nodes for name in node.inputs] + list(graph.outputs)
        self._reads = {name: read.count(name) for name in set(read)}

    def made_by(self, name: str, operator: str) -> Node | None:
        """The node of this operator that makes the value for one reader; None where it is another's, or more read."""
        node = self._maker.get(name)
        return node if node is not None and node.operator == operator and self._reads[name] == 1 else None


def _replace_linear(graph: PlainGraph) -> PlainGraph:
    """MatMul with a constant matrix and Add of a constant vector."""
    readers, constants = _Readers(graph), dict(graph.constants)

    def replace(node: Node) -> Node | None:
        if node.operator != "Add":
            return None
        product = readers.made_by(node.inputs[0], "MatMul")
        bias = constants.get(node.inputs[1])
        if product is None or bias is None or bias.ndim != 1:
            return None
        weight = constants.get(product.inputs[1])
        if weight is None or weight.ndim != 2 or weight.shape[1] != bias.shape[0]:
            return None
        turned = f"{product.inputs[1]} (turned)"
        constants[turned] = np.ascontiguousarray(weight.T)
        return Node("Linear", (product.inputs[0], turned, node.inputs[1]), node.outputs, {})

    nodes = _replaced(graph.nodes, replace)
    return dataclasses.replace(graph, nodes=nodes, constants=constants)


def _replace_gelu(graph: PlainGraph) -> PlainGraph:
    """x · (1 + erf(x / √2)) · 1/2, as op-set 17 spells it."""
    readers = _Readers(graph)

    def replace(node: Node) -> Node | None:
        gated = readers.made_by(node.inputs[0], "Mul") if _scales(graph, node, "Mul", 0.5) else None
        gate = readers.made_by(gated.inputs[1], "Add") if gated is not None else None
        erf = readers.made_by(gate.inputs[0], "Erf") if gate is not None and _scales(graph, gate, "Add", 1) else None
        scaled = readers.made_by(erf.inputs[0], "Div") if erf is not None else None
        if gated is None or scaled is None or not _scales(graph, scaled, "Div", 2**0.5):
            return None
        return Node("Gelu", (scaled.inputs[0],), node.outputs, {}) if scaled.inputs[0] == gated.inputs[0] else None

    return dataclasses.replace(graph, nodes=_replaced(graph.nodes, replace))


def _scales(graph: PlainGraph, node: Node, operator: str, number: float) -> bool:
    """Whether the node does `operator` with this scalar on the right."""
    if node.operator != operator:
        return False
    scalar = graph.constants.get(node.inputs[1])
    return scalar is not None and scalar.size == 1 and bool(np.isclose(scalar.item(), number, rtol=1e-6))


def _replace_attention(graph: PlainGraph) -> PlainGraph:
    """softmax(q kᵀ / root) v over the last axis."""
    readers = _Readers(graph)

    def replace(node: Node) -> Node | None:
        if node.operator != "MatMul":
            return None
        weights = readers.made_by(node.inputs[0], "Softmax")
        if weights is None or graph.opset < 13 or weights.attributes.get("axis", -1) != -1:
            return None
        scaled = readers.made_by(weights.inputs[0], "Div")
        scores = readers.made_by(scaled.inputs[0], "MatMul") if scaled is not None else None
        root = graph.constants.get(scaled.inputs[1]) if scaled is not None else None
        if scores is None or root is None or root.size != 1:
            return None
        inputs = (*scores.inputs, node.inputs[1])
        return Node("Attention", inputs, node.outputs, {"scale": 1 / float(root.item())})

    return dataclasses.replace(graph, nodes=_replaced(graph.nodes, replace))


def _replaced(nodes: Sequence[Node], replace: Callable[[Node], Node | None]) -> tuple[Node, ...]:
    return tuple(replace(node) or node for node in nodes)


def _without_unused(graph: PlainGraph) -> PlainGraph:
    """The graph without nodes and constants that no output needs."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    constants = {name: value for name, value in graph.constants.items() if name in needed}
    return dataclasses.replace(graph, nodes=tuple(reversed(kept)), constants=constants)
