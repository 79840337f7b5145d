"""The peers' networks of the comparison on a GPU: what becomes of the models, and that PyTorch computes the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import networks
from comparison.figures import NOT_INSTALLED
from comparison.gpu_turns import Worker
from comparison.half_model import half_model
from comparison.plain_graph import plain_graph, recognise_idioms, write_plain_graph

SMALL = ("mlp", "squeezenet", "mobilenet_v2")
# A Python with torch, where that is not this one: torch is no part of the development install.
PEER_PYTHON = os.environ.get("TVMBRIDGE_PEER_PYTHON", sys.executable)


def test_idioms_become_one_node_each():
    graph = recognise_idioms(plain_graph(networks.make_network("vit_tiny")))
    count = {name: sum(node.operator == name for node in graph.nodes) for name in ("Linear", "Gelu", "Attention")}
    assert count == {"Linear": 12 * 6, "Gelu": 12, "Attention": 12}
    operators = {node.operator for node in graph.nodes}
    assert operators == {
        *count,
        "Conv",
        "Reshape",
        "Transpose",
        "Concat",
        "Add",
        "LayerNormalization",
        "Gather",
        "Gemm",
    }


def test_an_average_over_the_whole_image_has_no_window_and_constants_are_computed():
    graph = plain_graph(networks.make_network("inception_v1"))
    operators = [node.operator for node in graph.nodes]
    assert operators.count("GlobalAveragePool") == 1 and "AveragePool" not in operators
    assert all(set(node.inputs) - set(graph.constants) for node in graph.nodes)


def feeds_of(model: onnx.ModelProto, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return {
        value.name: rng.integers(0, 30522, value.shape)
        if value.type == "tensor(int64)"
        else rng.standard_normal(value.shape).astype(np.float32)
        for value in session.get_inputs()
    }


def run_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def largest_error(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    assert expected.keys() == got.keys()
    return max(float(np.abs(got[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_float16_takes_and_gives_float32_and_is_near_its_original(name):
    model = networks.make_network(name)
    feeds = feeds_of(model)
    half = half_model(model)
    onnx.checker.check_model(half, full_check=True)
    error = largest_error(run_reference(model, feeds), run_reference(half, feeds))
    assert 1e-5 < error < 5e-2


def by_size(names: Iterable[str]) -> list[Any]:
    """The large ones are slow tests."""
    return [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def torch_worker():
    """A process with torch; where no Python here has it, what needs it is not run."""
    with Worker(PEER_PYTHON, "") as worker:
        version = worker.ask("describe", packages=["torch"])["versions"]["torch"]
        if version is None:
            pytest.skip(f"NOT RUN: {PEER_PYTHON} has no torch; TVMBRIDGE_PEER_PYTHON may name a Python that has")
        yield worker


def run_in_torch(worker: Worker, program: str, model: onnx.ModelProto, folder: Path, *, half: bool = False) -> float:
    """The error of PyTorch's outputs against ONNX Runtime's."""
    feeds = feeds_of(model)
    expected = run_reference(model, feeds)
    write_plain_graph(model, folder / "graph")
    np.savez(folder / "feeds.npz", **{f"a{index}": array for index, array in enumerate(feeds.values())})
    request = {
        "program": program,
        "graph": str(folder / "graph"),
        "half": half,
        "device": "cpu",
        "feeds": str(folder / "feeds.npz"),
        "inputs": list(feeds),
        "outputs": list(expected),
        "results": str(folder / "results.npz"),
    }
    answer = worker.ask("start", **request)
    assert "seconds" in answer, answer
    with np.load(folder / "results.npz") as arrays:
        got = {name: arrays[f"a{index}"] for index, name in enumerate(expected)}
    assert worker.ask("block", program=program, seconds=0)["us"]
    worker.ask("stop")
    return largest_error(expected, got)


@pytest.mark.parametrize("name", by_size(networks.NETWORKS))
def test_pytorch_computes_what_onnx_runtime_does(torch_worker, tmp_path, name):
    assert run_in_torch(torch_worker, "eager", networks.make_network(name, 2), tmp_path) < 1e-4


# PyTorch's CPU code has no average of float16 in three dimensions, which its LRN, in inception_v1, is made of.
@pytest.mark.parametrize("name", by_size(name for name in networks.NETWORKS if name != "inception_v1"))
def test_pytorch_computes_in_float16_and_gives_float32(torch_worker, tmp_path, name):
    assert 1e-4 < run_in_torch(torch_worker, "eager", networks.make_network(name, 1), tmp_path, half=True) < 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("program", ["compile", "compile_defaults"])
def test_a_compiled_pytorch_network_computes_the_same(torch_worker, tmp_path, program):
    assert run_in_torch(torch_worker, program, networks.make_network("mlp", 3), tmp_path) < 1e-4


def test_onnx_runtimes_providers_for_gpus_are_not_installed_where_there_is_none(tmp_path):
    with Worker() as worker:
        np.savez(tmp_path / "feeds.npz")
        request = {"feeds": str(tmp_path / "feeds.npz"), "inputs": [], "outputs": [], "model": "", "half": False}
        for program in ("onnxruntime_cuda", "tensorrt"):
            assert worker.ask("start", program=program, **request) == {"absent": NOT_INSTALLED}
