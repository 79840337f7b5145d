"""What every tensor of a graph holds in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from tvmbridge.bisect.cut import Graph
from tvmbridge.verify.reference import ReferenceSession

_AT_ONCE = 64  # tensors that are held in memory together


class ReferenceValues:
    """The values of a graph's tensors for one set of inputs, kept in `folder`.

    Only tensors that NumPy can hold have one: no sequences, no bfloat16. Raises ReferenceUnavailable and ModelError
    where ONNX Runtime does not take the model or fails on the inputs.
    """

    def __init__(self, graph: Graph, feeds: Mapping[str, np.ndarray], folder: Path) -> None:
        self._feeds = feeds
        self._files: dict[str, Path] = {}
        names = [name for node in graph.nodes for name in node.output if name]
        for start in range(0, len(names), _AT_ONCE):
            for name, value in _run(graph, names[start : start + _AT_ONCE], feeds).items():
                self._files[name] = folder / f"{len(self._files)}.npy"
                np.save(self._files[name], value)

    def get(self, name: str) -> np.ndarray | None:
        """The value of an input, or of what a node makes; None where there is none."""
        if name in self._feeds:
            return self._feeds[name]
        return np.load(self._files[name]) if name in self._files else None

    def __contains__(self, name: str) -> bool:
        return name in self._feeds or name in self._files


def _run(graph: Graph, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    shown = onnx.ModelProto()
    shown.CopyFrom(graph.model)
    listed = {entry.name: entry for entry in graph.model.graph.output}
    del shown.graph.output[:]
    # The type of what lies between is ONNX Runtime's to infer.
    shown.graph.output.extend(listed.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    session = ReferenceSession(shown)
    return session.run(feeds, session.arrays)
