"""The benchmark networks: finite, ordinary outputs that depend on the input, and the same network every time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "networks.py"
QUICK = ("mlp", "squeezenet")


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_networks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits_of_two_inputs(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Run the network on two random inputs; what a final softmax reads counts as the logits."""
    last = model.graph.node[-1]
    name = last.input[0] if last.op_type == "Softmax" else last.output[0]
    if last.op_type == "Softmax":
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    rng = np.random.default_rng(1)
    one, other = (
        rng.integers(0, 30522, given.shape)
        if given.type == "tensor(int64)"
        else rng.standard_normal(given.shape).astype(np.float32)
        for _ in range(2)
    )
    return session.run([name], {given.name: one})[0], session.run([name], {given.name: other})[0]


def assert_ordinary(model: onnx.ModelProto) -> None:
    one, other = logits_of_two_inputs(model)
    assert np.isfinite(one).all()
    assert 0.1 < one.std() < 50
    assert (one - other).std() > 0.1 * one.std()


@pytest.mark.parametrize("name", QUICK)
def test_a_small_network_has_ordinary_outputs_that_vary_over_inputs(networks, name):
    assert_ordinary(networks.make_network(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "shufflenet", "inception_v1", "bert4"])
def test_a_large_network_has_ordinary_outputs_that_vary_over_inputs(networks, name):
    assert_ordinary(networks.make_network(name))


@pytest.mark.parametrize("name", QUICK)
def test_a_network_is_the_same_each_time_and_all_its_weights_vary(networks, name):
    model = networks.make_network(name)
    assert model == networks.make_network(name)
    floats = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    assert floats
    assert all(value.std() > 0 for value in floats)
    assert {value.name for value in model.graph.input}.isdisjoint(tensor.name for tensor in model.graph.initializer)


def test_another_name_is_refused_with_the_names_there_are(networks):
    assert set(QUICK) < set(networks.NETWORKS)
    with pytest.raises(ValueError, match="no network 'resnet51'; there are resnet50, squeezenet"):
        networks.make_network("resnet51")


def test_the_script_writes_the_network_that_it_is_asked_for(networks, tmp_path):
    output = tmp_path / "m.onnx"
    done = subprocess.run([sys.executable, SCRIPT, "mlp", "-o", output], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4.8 MB" in done.stdout
    assert onnx.load(output) == networks.make_network("mlp")
