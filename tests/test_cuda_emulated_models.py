"""Models built for CUDA and run on the emulated device give what ONNX Runtime gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_emulation import DEVICE_NAME, run_emulated
from onnx import helper
from onnx_models import conv_bn_relu, embedding, mlp, model, random_weight, two_outputs, value

from comparison.gpu_figures import LIMITS, TIMED_LIMITS
from networks import AMPLIFYING, NETWORKS, make_network
from tvmbridge.bundle import open_bundle

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits.onnx"
TOLERANCE, FLOAT16_TOLERANCE = 1e-4, 1e-2


def compare(path: Path, *options: str, **settings: str) -> dict[str, float]:
    """The largest relative error of each output; the test fails where one is above the tolerance."""
    command = [sys.executable, "-m", "tests.cuda_emulation", str(path), "--json", *options]
    said = run_emulated(command, timeout_s=1800, **settings).stdout
    return json.loads(said.splitlines()[-1])["outputs"]


def small_vision_network() -> onnx.ModelProto:
    """Convolutions (one depthwise, one strided), pools, a resize, a concatenation, a mean and a softmax."""
    weights = {
        "w1": random_weight((24, 3, 3, 3), 1),
        "b1": random_weight((24,), 2),
        "w2": random_weight((24, 1, 3, 3), 3),
        "w3": random_weight((40, 24, 1, 1), 4),
        "w4": random_weight((13, 64), 5),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=24),
        node("MaxPool", ["c2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["p2", "", "scales"], ["u2"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Conv", ["u2", "w3"], ["c3"]),
        node("HardSwish", ["c3"], ["h3"]),
        node("AveragePool", ["u2"], ["a2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", ["h3", "a2"], ["j"], axis=1),
        node("GlobalAveragePool", ["j"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w4"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    return model(nodes, [value("x", (2, 3, 28, 36))], [value("y", (2, 13)), value("u2", None)], weights)


def transformer_block(batch: int = 2, tokens: int = 19, width: int = 48, heads: int = 3) -> onnx.ModelProto:
    """Attention with a mask, layer norms and an MLP with Gelu's erf, lengths that no tile divides."""
    size = width // heads
    weights = {name: random_weight((width, width), seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {"up": random_weight((width, 4 * width), 5), "down": random_weight((4 * width, width), 6)}
    weights |= {"scale": 1 + random_weight((width,), 7), "shift": random_weight((width,), 8)}
    weights |= {"split": np.array([0, 0, heads, size], np.int64), "join": np.array([0, 0, width], np.int64)}
    weights |= {name: np.array(number, np.float32) for name, number in (("root", size**0.5), ("two", 2**0.5))}
    weights |= {"one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
    node, nodes = helper.make_node, []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("MatMul", ["x", f"w{name}"], [f"{name}0"]))
        nodes.append(node("Reshape", [f"{name}0", "split"], [f"{name}1"]))
        nodes.append(node("Transpose", [f"{name}1"], [name], perm=order))
    nodes += [
        node("MatMul", ["q", "k"], ["scores"]),
        node("Div", ["scores", "root"], ["scaled"]),
        node("Add", ["scaled", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["heads", "join"], ["joined"]),
        node("MatMul", ["joined", "wo"], ["projected"]),
        node("Add", ["projected", "x"], ["sum"]),
        node("LayerNormalization", ["sum", "scale", "shift"], ["normed"], axis=-1),
        node("MatMul", ["normed", "up"], ["wide"]),
        node("Div", ["wide", "two"], ["scaled2"]),
        node("Erf", ["scaled2"], ["erf"]),
        node("Add", ["erf", "one"], ["gate"]),
        node("Mul", ["wide", "gate"], ["gated"]),
        node("Mul", ["gated", "half"], ["gelu"]),
        node("MatMul", ["gelu", "down"], ["narrow"]),
        node("Add", ["narrow", "normed"], ["y"]),
    ]
    inputs = [value("x", (batch, tokens, width)), value("mask", (batch, 1, 1, tokens))]
    return model(nodes, inputs, [value("y", (batch, tokens, width))], weights)


SMALL = {
    "small_vision_network": small_vision_network,
    "transformer_block": transformer_block,
    "mlp": mlp,
    "conv_bn_relu": conv_bn_relu,
    "embedding": embedding,
    "two_outputs": two_outputs,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_is_right(name: str, tmp_path: Path) -> None:
    onnx.save(SMALL[name](), tmp_path / "model.onnx")
    compare(tmp_path / "model.onnx", f"--tolerance={TOLERANCE}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_vision_network", "transformer_block"])
def test_a_small_model_is_right_in_float16(name: str, tmp_path: Path) -> None:
    onnx.save(SMALL[name](), tmp_path / "model.onnx")
    compare(tmp_path / "model.onnx", "--target=cuda:sm_80,float16", f"--tolerance={FLOAT16_TOLERANCE}")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["backward", "random"])
def test_the_order_in_which_threads_run_changes_no_bit(order: str, tmp_path: Path) -> None:
    onnx.save(transformer_block(), tmp_path / "model.onnx")
    command = [sys.executable, "-m", "tests.cuda_emulation", str(tmp_path / "model.onnx"), "--json"]
    digests = [json.loads(run_emulated(command, CUDA_EMULATION_ORDER=o).stdout)["digest"] for o in ("forward", order)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_build_verifies_and_times_on_the_emulated_device_and_says_so(tmp_path: Path) -> None:
    bundle = tmp_path / "digits.tvmb"
    command = [sys.executable, "-m", "tvmbridge", "build", str(DIGITS), "--dim", "batch=1", "--target", "cuda:sm_80"]
    said = run_emulated([*command, "-o", str(bundle)]).stdout
    assert "emulated" in said
    with open_bundle(bundle) as opened:
        (variant,) = opened.manifest.variants
    assert variant.emulated
    assert variant.accuracy is not None
    assert variant.accuracy.max_relative <= TOLERANCE
    checked = run_emulated([sys.executable, "-m", "tvmbridge", "check", str(bundle), "--json"]).stdout
    assert DEVICE_NAME in checked


@pytest.mark.cuda
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_benchmark_network_is_right(name: str, tmp_path: Path) -> None:
    onnx.save(make_network(name, 2 if name == "mlp" else 1), tmp_path / "model.onnx")
    compare(tmp_path / "model.onnx", f"--tolerance={TOLERANCE}", "--samples=1")


@pytest.mark.cuda
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_benchmark_network_is_right_in_float16(name: str, tmp_path: Path) -> None:
    onnx.save(make_network(name), tmp_path / "model.onnx")
    tolerance = (TIMED_LIMITS if name in AMPLIFYING else LIMITS)["float16"]
    compare(tmp_path / "model.onnx", "--target=cuda:sm_80,float16", f"--tolerance={tolerance}", "--samples=1")
