"""The benchmark networks: finite, ordinary outputs that depend on the input, and the same network every time."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import networks

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "networks.py"
QUICK = ("mlp", "squeezenet", "mobilenet_v2")
LARGE = ("resnet50", "shufflenet", "inception_v1", "vit_tiny", "bert4")


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
def test_a_small_network_has_ordinary_outputs_that_vary_over_inputs(name):
    assert_ordinary(networks.make_network(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_network_has_ordinary_outputs_that_vary_over_inputs(name):
    assert_ordinary(networks.make_network(name))


def assert_samples_do_not_mix(name: str) -> None:
    """Each sample of a batch of 4 gives what it gives alone: the weights are the same, and no reshape mixes them."""
    alone, together = (
        onnxruntime.InferenceSession(networks.make_network(name, batch).SerializeToString()) for batch in (1, 4)
    )
    (given,) = together.get_inputs()
    assert given.shape[0] == 4 and together.get_outputs()[0].shape[0] == 4
    rng = np.random.default_rng(2)
    samples = (
        rng.integers(0, 30522, given.shape)
        if given.type == "tensor(int64)"
        else rng.standard_normal(given.shape).astype(np.float32)
    )
    (expected,) = together.run(None, {given.name: samples})
    for index in range(4):
        (got,) = alone.run(None, {given.name: samples[index : index + 1]})
        assert np.abs(got - expected[index : index + 1]).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", QUICK)
def test_a_batch_of_a_small_network_is_its_samples_side_by_side(name):
    assert_samples_do_not_mix(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_batch_of_a_large_network_is_its_samples_side_by_side(name):
    assert_samples_do_not_mix(name)


def test_the_quick_and_the_large_networks_are_all_there_are():
    assert {*QUICK, *LARGE} == set(networks.NETWORKS)
    assert set(networks.BATCHES) == set(networks.NETWORKS)


def operators(model: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.node)


def test_mobilenet_v2_has_17_blocks_of_which_10_are_added_to_what_they_read():
    model = networks.make_network("mobilenet_v2")
    assert operators(model)["Conv"] == 52 and operators(model)["Clip"] == 35 and operators(model)["Add"] == 10
    groups = [attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "group"]
    assert sum(group > 1 for group in groups) == 17 and max(groups) == 960
    parameters = sum(np.prod(tensor.dims, dtype=int) for tensor in model.graph.initializer if tensor.dims)
    assert 3.4e6 < parameters < 3.6e6  # the paper: 3.4 million


def test_vit_tiny_has_12_layers_over_197_tokens():
    model = onnx.shape_inference.infer_shapes(networks.make_network("vit_tiny"))
    assert operators(model)["LayerNormalization"] == 25 and operators(model)["Erf"] == operators(model)["Softmax"] == 12
    (scores,) = [value for value in model.graph.value_info if value.name == "layer11.scores"]
    assert [axis.dim_value for axis in scores.type.tensor_type.shape.dim] == [1, 3, 197, 197]
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert 5.6e6 < sum(np.prod(tensor.dims, dtype=int) for tensor in floats) < 5.8e6  # DeiT's paper: 5.7 million


@pytest.mark.parametrize("name", QUICK)
def test_a_network_is_the_same_each_time_and_all_its_weights_vary(name):
    model = networks.make_network(name)
    assert model == networks.make_network(name)
    floats = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    assert floats
    assert all(value.std() > 0 for value in floats if value.size > 1)
    assert {value.name for value in model.graph.input}.isdisjoint(tensor.name for tensor in model.graph.initializer)


def test_another_name_is_refused_with_the_names_there_are():
    assert set(QUICK) < set(networks.NETWORKS)
    with pytest.raises(ValueError, match="no network 'resnet51'; there are resnet50, squeezenet"):
        networks.make_network("resnet51")


def test_the_script_writes_the_network_that_it_is_asked_for(tmp_path):
    output = tmp_path / "m.onnx"
    done = subprocess.run(
        [sys.executable, SCRIPT, "mlp", "--batch", "4", "-o", output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4.8 MB" in done.stdout
    assert onnx.load(output) == networks.make_network("mlp", 4)
