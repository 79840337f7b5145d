"""Train a small convolutional network on scikit-learn's digits and export it: digits.onnx and held_out.npz.

    pip install numpy onnx scikit-learn
    python train.py [folder]

The network and its training are plain NumPy: forward, backward and Adam by hand, so that nothing larger is needed.
Images are [batch, 1, 8, 8] float32 in 0..1. Takes well under two minutes on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

SEED = 2026
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 2e-3
CHANNELS = (1, 16, 32)
HIDDEN = 96
CLASSES = 10

Array = np.ndarray
Weights = dict[str, Array]


def split_digits() -> tuple[Array, Array, Array, Array]:
    """Return training images and labels, held-out images and labels; every fifth image is held out."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 0
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def initial_weights(rng: np.random.Generator) -> Weights:
    """Draw weights so that each layer's output keeps the variance of its input (He et al., 2015); zero biases."""
    shapes = {
        "conv1": (CHANNELS[1], CHANNELS[0], 3, 3),
        "conv2": (CHANNELS[2], CHANNELS[1], 3, 3),
        "dense1": (HIDDEN, CHANNELS[2] * 4 * 4),
        "dense2": (CLASSES, HIDDEN),
    }
    weights: Weights = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.weight"] = (rng.standard_normal(shape) * scale).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    return weights


def patches(x: Array) -> Array:
    """Collect each pixel's 3x3 neighbourhood, zeros beyond the edge: [n, c, h, w] -> [n, h, w, c * 9]."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def spread(gradient: Array, channels: int) -> Array:
    """Add the gradients of all neighbourhoods back to their pixels: the transpose of `patches`."""
    n, h, w, _ = gradient.shape
    parts = gradient.reshape(n, h, w, channels, 3, 3)
    padded = np.zeros((n, channels, h + 2, w + 2), np.float32)
    for row in range(3):
        for column in range(3):
            padded[:, :, row : row + h, column : column + w] += parts[..., row, column].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


def conv_relu(x: Array, weight: Array, bias: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """Convolve 3x3, pad 1, and apply ReLU; also return the function from dy to (dx, dweight, dbias)."""
    columns = patches(x)
    matrix = weight.reshape(len(weight), -1)
    y = np.maximum(columns @ matrix.T + bias, 0).transpose(0, 3, 1, 2)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        d = (dy * (y > 0)).transpose(0, 2, 3, 1)
        flat = d.reshape(-1, len(weight))
        dweight = (flat.T @ columns.reshape(len(flat), -1)).reshape(weight.shape)
        return spread(d @ matrix, x.shape[1]), dweight, flat.sum(0)

    return y, backward


def max_pool(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Take the largest of each 2x2 square; also return the function from dy to dx."""
    n, c, h, w = x.shape
    squares = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
    winner = squares.argmax(-1)[..., None]

    def backward(dy: Array) -> Array:
        dx = np.zeros_like(squares)
        np.put_along_axis(dx, winner, dy[..., None], -1)
        return dx.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(x.shape)

    return np.take_along_axis(squares, winner, -1)[..., 0], backward


def logits_and_gradients(weights: Weights, x: Array, labels: Array | None = None) -> tuple[Array, Weights]:
    """Run the network; with labels, also return the gradients of the mean cross-entropy."""
    first, first_backward = conv_relu(x, weights["conv1.weight"], weights["conv1.bias"])
    second, second_backward = conv_relu(first, weights["conv2.weight"], weights["conv2.bias"])
    pooled, pool_backward = max_pool(second)
    flat = pooled.reshape(len(x), -1)
    hidden = np.maximum(flat @ weights["dense1.weight"].T + weights["dense1.bias"], 0)
    logits = hidden @ weights["dense2.weight"].T + weights["dense2.bias"]
    if labels is None:
        return logits, {}
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    dlogits = exponentials / exponentials.sum(1, keepdims=True)
    dlogits[np.arange(len(x)), labels] -= 1
    dlogits /= len(x)
    dhidden = dlogits @ weights["dense2.weight"] * (hidden > 0)
    dpooled = (dhidden @ weights["dense1.weight"]).reshape(pooled.shape)
    dfirst, dconv2, dconv2_bias = second_backward(pool_backward(dpooled))
    _, dconv1, dconv1_bias = first_backward(dfirst)
    return logits, {
        "conv1.weight": dconv1,
        "conv1.bias": dconv1_bias,
        "conv2.weight": dconv2,
        "conv2.bias": dconv2_bias,
        "dense1.weight": dhidden.T @ flat,
        "dense1.bias": dhidden.sum(0),
        "dense2.weight": dlogits.T @ hidden,
        "dense2.bias": dlogits.sum(0),
    }


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """Move each image by up to one pixel each way, so that the network does not learn positions by heart."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    rows, columns = rng.integers(0, 3, (2, len(images)))
    return windows[np.arange(len(images)), :, rows, columns]


def train(images: Array, labels: Array, *, epochs: int = EPOCHS, seed: int = SEED) -> Weights:
    """Train with Adam (Kingma and Ba, 2015), the step falling to zero along a half cosine."""
    rng = np.random.default_rng(seed)
    weights = initial_weights(rng)
    mean = {name: np.zeros_like(value) for name, value in weights.items()}
    square = {name: np.zeros_like(value) for name, value in weights.items()}
    steps = epochs * (len(images) // BATCH)
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            _, gradients = logits_and_gradients(weights, shifted(images[batch], rng), labels[batch])
            step += 1
            rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, gradient in gradients.items():
                mean[name] += 0.1 * (gradient - mean[name])
                square[name] += 0.001 * (gradient**2 - square[name])
                update = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8)
                weights[name] = (weights[name] - rate * update).astype(np.float32)
    return weights


def export(weights: Weights) -> onnx.ModelProto:
    """Write the network as ONNX, op-set 17: image [batch, 1, 8, 8] -> logits [batch, 10]."""
    window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["c1"], "conv1", **window),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", **window),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "dense1.weight", "dense1.bias"], ["d1"], "dense1", transB=1),
        helper.make_node("Relu", ["d1"], ["r3"], "relu3"),
        helper.make_node("Gemm", ["r3", "dense2.weight", "dense2.bias"], ["logits"], "dense2", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main(folder: Path) -> None:
    """Train, print the held-out accuracy, and write both files."""
    images, labels, held_out_images, held_out_labels = split_digits()
    weights = train(images, labels)
    logits, _ = logits_and_gradients(weights, held_out_images)
    correct = int((logits.argmax(1) == held_out_labels).sum())
    print(f"held-out accuracy {correct / len(held_out_labels):.2%} ({correct} of {len(held_out_labels)} images)")
    onnx.save(export(weights), folder / "digits.onnx")
    np.savez_compressed(folder / "held_out.npz", image=held_out_images, label=held_out_labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
