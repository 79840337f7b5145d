"""How a trace says in which order a buffer or a block is laid out: "(i0, i1) -> (i0 * 64 + i1)".

TVM writes such a map as the graph of its objects, some kilobytes for each.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import tirx

_OPERATORS = {tirx.Add: "+", tirx.Mul: "*", tirx.FloorDiv: "//", tirx.FloorMod: "%"}


def render_index_map(graph: str) -> str:
    """The text of a map that TVM has written, the same for the same map; ValueError for anything else."""
    index_map = tvm.ir.load_json(graph)
    if not isinstance(index_map, tirx.IndexMap) or index_map.inverse_index_map is not None:
        raise ValueError("not a map of indices")
    names = {var: f"i{place}" for place, var in enumerate(index_map.initial_indices)}
    results = [_render(result, names) for result in index_map.final_indices]
    return f"({', '.join(names.values())}) -> ({', '.join(results)})"


def _render(index: tvm.ir.Expr, names: Mapping[tvm.ir.Var, str]) -> str:
    if isinstance(index, tvm.ir.Var):
        return names.get(index, index.name)
    if isinstance(index, tirx.IntImm):
        return str(int(index))
    if type(index) not in _OPERATORS:
        raise ValueError(f"a map of indices with a {type(index).__name__}")
    sides = [_render(side, names) for side in (index.a, index.b)]
    return f" {_OPERATORS[type(index)]} ".join(f"({side})" if " " in side else side for side in sides)
