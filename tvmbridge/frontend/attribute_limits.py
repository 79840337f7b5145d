"""Refuses attributes by which onnx's shape inference, C++ that trusts them, would crash the process.

As seen in onnx 1.23: an index computed of such an attribute is read or written without a look at how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

from tvmbridge.errors import ModelError
from tvmbridge.frontend.walk import STANDARD_DOMAINS, label

_MOST_AXES = 2**10


def check_attributes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Raise ModelError for the first of the nodes with such an attribute."""
    for node in nodes:
        rule = _RULES.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
        found = rule(node) if rule is not None else None
        if found is not None:
            raise ModelError(f"{node.op_type} {label(node)!r}: {found}", hint="the model is damaged: export it again")


def _layer_normalization(node: onnx.NodeProto) -> str | None:
    axis = _integer(node, "axis")
    return None if axis is None or -_MOST_AXES < axis < _MOST_AXES else f"no tensor has an axis {axis}"


def _gather_nd(node: onnx.NodeProto) -> str | None:
    count = _integer(node, "batch_dims")
    return None if count is None or 0 <= count < _MOST_AXES else f"no tensor has {count} batch dimensions"


def _split(node: onnx.NodeProto) -> str | None:
    count = _integer(node, "num_outputs")
    if count is None or count == len(node.output):
        return None
    return f"{len(node.output)} outputs are named, and num_outputs is {count}"


_RULES: dict[str, Callable[[onnx.NodeProto], str | None]] = {
    "LayerNormalization": _layer_normalization,
    "GatherND": _gather_nd,
    "Split": _split,
}


def _integer(node: onnx.NodeProto, name: str) -> int | None:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), None)
