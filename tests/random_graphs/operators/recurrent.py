"""Recurrent layers, in every direction, with and without what is optional."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.graph import Graph, Tensor

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(g: Graph) -> Tensor:
    kind = g.choices.of(tuple(_GATES))
    steps, batch, width = g.choices.of((1, 3, 5)), g.choices.of((1, 2)), g.choices.of((1, 3, 8))
    hidden = g.choices.of((1, 4, 5))
    x = g.pick(("float32",), low=3, high=3)
    if x.value.size > 500:
        x = g.input((steps, batch, width), "float32")
    steps, batch, width = x.shape
    direction = g.choices.of((None, "reverse", "bidirectional"))
    ways = 2 if direction == "bidirectional" else 1
    gates = _GATES[kind]

    def weight(*shape: int) -> Tensor:
        return g.weight(g.normal(shape, "float32", 0.5))

    inputs: list[Tensor | None] = [x, weight(ways, gates * hidden, width), weight(ways, gates * hidden, hidden)]
    inputs.append(weight(ways, 2 * gates * hidden) if g.choices.odds(0.7) else None)
    lengths = np.asarray(g.generator.integers(1, steps + 1, (batch,))).astype("int32")
    inputs.append(g.weight(lengths) if g.choices.odds(0.3) else None)
    inputs.append(weight(ways, batch, hidden) if g.choices.odds(0.5) else None)
    if kind == "LSTM" and g.choices.odds(0.5):
        inputs.append(weight(ways, batch, hidden))
        inputs.append(weight(ways, 3 * hidden) if g.choices.odds(0.5) else None)
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, object] = {"direction": direction, "hidden_size": hidden}
    if kind == "GRU":
        attributes["linear_before_reset"] = g.choices.of((None, 0, 1))
    if kind == "RNN" and g.choices.odds(0.3):
        attributes["activations"] = [g.choices.of(("Relu", "Sigmoid", "Tanh")) for _ in range(ways)]
    if g.choices.odds(0.2):
        attributes["clip"] = 1.0
    return g.ops(kind, inputs, 3 if kind == "LSTM" else 2, **attributes)[0]


OPERATORS = (layer, layer, layer)
