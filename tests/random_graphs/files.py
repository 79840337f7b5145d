"""A graph as files: model.onnx, and data.npz with its inputs and what ONNX Runtime gave for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.random_graphs.draw import Drawn


def write_graph(drawn: Drawn, folder: Path) -> None:
    """Write both files; arrays are stored by position, as a name may be no name of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(drawn.model, folder / "model.onnx")
    inputs = {f"input{i}": value for i, value in enumerate(drawn.feeds.values())}
    outputs = {f"output{i}": value for i, value in enumerate(drawn.expected.values())}
    np.savez(folder / "data.npz", **inputs, **outputs)


def read_graph(folder: Path) -> Drawn:
    """What `write_graph` wrote."""
    model = onnx.load(folder / "model.onnx")
    with np.load(folder / "data.npz") as data:
        feeds = {entry.name: data[f"input{i}"] for i, entry in enumerate(model.graph.input)}
        expected = {entry.name: data[f"output{i}"] for i, entry in enumerate(model.graph.output)}
    return Drawn(model, feeds, expected)


def is_written(folder: Path) -> bool:
    """Whether the folder holds a whole graph: data.npz is written last."""
    return (folder / "data.npz").exists()
