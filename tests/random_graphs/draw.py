"""Random ONNX models that ONNX Runtime runs, with inputs for which their outputs say something."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.random_graphs.choices import Choices, DrawnChoices, SeededChoices
from tests.random_graphs.graph import FLOATS, Graph, Rejected, Tensor
from tests.random_graphs.operators import (
    contractions,
    control,
    elementwise,
    indexing,
    movement,
    normalisations,
    quantised,
    recurrent,
    reductions,
    windows,
)
from tests.random_graphs.reference import Reference, make_model, reads

OPSETS = (17, 13, 18, 21, 23, 17, 20, 11, 18, 15, 22, 14, 9, 12, 23, 10, 16, 19, 8, 7, 13, 21)
_FAMILIES = (
    *(elementwise.OPERATORS,) * 6,
    *(movement.OPERATORS,) * 4,
    *(reductions.OPERATORS,) * 3,
    *(contractions.OPERATORS,) * 3,
    *(normalisations.OPERATORS,) * 2,
    *(windows.OPERATORS,) * 2,
    *(indexing.OPERATORS,) * 2,
    (*control.OPERATORS, *recurrent.OPERATORS),
    control.OPERATORS,
    quantised.OPERATORS,
)
_SPECIAL_FAMILIES = (elementwise.WITH_SPECIALS, movement.WITH_SPECIALS)
_TRIES = 60


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A model, its inputs, and what ONNX Runtime gives for them."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @property
    def operators(self) -> tuple[str, ...]:
        """The op types of the graph, in its order."""
        return tuple(node.op_type for node in self.model.graph.node)


def draw_graph(choices: Choices) -> Drawn:
    """A model of 2 to 15 operators, and a few more where a step takes several."""
    specials = choices.odds(0.06)
    graph = Graph(choices, choices.of(OPSETS), choices.integer(0, 2**31), specials=specials)
    families = _SPECIAL_FAMILIES if specials else _FAMILIES
    wanted = choices.integer(2, 15)
    graph.input(graph.shape(0, 5), choices.of(FLOATS) if choices.odds(0.2) else "float32")
    for _ in range(_TRIES):
        if len(graph.computed) >= wanted:
            break
        before = graph.snapshot()
        try:
            choices.of(choices.of(families))(graph)
        except Rejected:
            graph.restore(before)
    return _finish(graph)


def draw_seeded(seed: int, index: int) -> Drawn:
    """Graph number `index` of a campaign."""
    return draw_graph(SeededChoices(seed, index))


@st.composite
def graphs(draw: Any) -> Drawn:
    """Random graphs; they shrink to fewer and simpler operators."""
    return draw_graph(DrawnChoices(draw))


def _finish(graph: Graph) -> Drawn:
    if not graph.computed:
        x = next(iter(graph.inputs.values()))
        graph.op("Identity", [x])
    used = {name for node in graph.nodes for name in reads(node)}
    ends = [tensor for tensor in graph.computed if tensor.name not in used]
    outputs = ends + [t for t in graph.computed if t.name in used and graph.choices.odds(0.08)]
    inputs = {name: tensor for name, tensor in graph.inputs.items() if name in used}
    made_by_nodes = {name for node in graph.nodes for name in node.output}
    constants = {n: t.value for n, t in graph.constants.items() if n in used and n not in made_by_nodes}
    nodes = [node for node in graph.nodes if node.op_type != "Constant" or node.output[0] in used]
    feeds = {name: tensor.value for name, tensor in inputs.items()}
    model = make_model(nodes, feeds, constants, _values(outputs), graph.opset)
    onnx.checker.check_model(model)
    return Drawn(model, feeds, Reference(model).run(feeds))


def _values(tensors: list[Tensor]) -> dict[str, np.ndarray | None]:
    return {tensor.name: tensor.value for tensor in tensors}
