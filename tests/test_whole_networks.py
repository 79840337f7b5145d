"""Whole networks with random weights, built and run: each gives what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from topologies.graph import Graph
from topologies.light import light_network
from tvmbridge import backend

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
TOLERANCE = 1e-4  # of the greatest magnitude in an output


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network up to its logits: a softmax would multiply their relative error by their size, for any compiler."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.node.remove(last)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, None))
    return model


def assert_right(model: onnx.ModelProto, *arrays: np.ndarray) -> None:
    serialized = model.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    references = session.run(None, dict(zip((entry.name for entry in model.graph.input), arrays, strict=True)))
    del session, serialized
    results = backend.run_model(model, list(arrays))
    for result, reference in zip(results, references, strict=True):
        assert result.shape == reference.shape
        assert np.abs(reference).max() > 0.1
        assert np.abs(result - reference).max() <= TOLERANCE * np.abs(reference).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_an_image_network_of_the_onnx_package_is_right(name: str) -> None:
    generator = np.random.default_rng(0)
    model = without_softmax(light_network(name, 1, generator))
    assert_right(model, generator.standard_normal((1, 3, 224, 224)).astype(np.float32))


class Unet(Graph):
    """A U-Net as exporters write it: halved by pooling, doubled by transposed convolutions, joined level by level."""

    def conv(self, x: str, name: str, inputs: int, outputs: int, size: int = 3) -> str:
        """Convolution with bias; padded to keep the size."""
        weight = self.normal(f"{name}.weight", (outputs, inputs, size, size), float(np.sqrt(2 / (inputs * size**2))))
        bias = self.normal(f"{name}.bias", (outputs,), 0.1)
        return self.node("Conv", [x, weight, bias], name, pads=[size // 2] * 4, kernel_shape=[size, size])

    def block(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """Convolution, batch norm and ReLU, twice."""
        for part, width in (("a", inputs), ("b", outputs)):
            x = self.conv(x, f"{name}.{part}", width, outputs)
            scale, offset, mean = (
                self.normal(f"{name}.{part}.{kind}", (outputs,), 0.1, middle)
                for kind, middle in (("scale", 1), ("offset", 0), ("mean", 0))
            )
            variance = self.constant(f"{name}.{part}.var", self.rng.uniform(0.75, 1.25, outputs).astype(np.float32))
            x = self.node("BatchNormalization", [x, scale, offset, mean, variance], f"{name}.{part}.norm")
            x = self.node("Relu", [x], f"{name}.{part}.relu")
        return x

    def up(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """Transposed convolution that doubles height and width."""
        weight = self.normal(f"{name}.weight", (inputs, outputs, 2, 2), float(np.sqrt(1 / inputs)))
        bias = self.normal(f"{name}.bias", (outputs,), 0.1)
        return self.node("ConvTranspose", [x, weight, bias], name, strides=[2, 2], kernel_shape=[2, 2])


def unet(generator: np.random.Generator, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    graph = Unet(generator)
    widths = (12, 24, 40)
    x, skipped, inputs = "image", [], shape[1]
    for level, width in enumerate(widths):
        x = graph.block(x, f"down{level}", inputs, width)
        skipped.append(x)
        x = graph.node("MaxPool", [x], f"pool{level}", kernel_shape=[2, 2], strides=[2, 2])
        inputs = width
    x = graph.block(x, "bottom", inputs, 64)
    inputs = 64
    for level, width in reversed(list(enumerate(widths))):
        x = graph.up(x, f"up{level}", inputs, width)
        x = graph.node("Concat", [x, skipped[level]], f"join{level}", axis=1)
        x = graph.block(x, f"merge{level}", 2 * width, width)
        inputs = width
    x = graph.node("Sigmoid", [graph.conv(x, "head", inputs, 5, 1)], "masks")
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    return graph.model(
        "unet", [given], [helper.make_tensor_value_info(x, TensorProto.FLOAT, (shape[0], 5, *shape[2:]))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 64, 48), (2, 3, 40, 72)])
def test_a_u_net_with_transposed_convolutions_is_right(shape: tuple[int, int, int, int]) -> None:
    generator = np.random.default_rng(0)
    assert_right(unet(generator, shape), generator.standard_normal(shape).astype(np.float32))


class Decoder(Graph):
    """A decoder as exporters write it, batch and length left open: shapes are computed in the graph."""

    width, heads, words, longest = 48, 4, 101, 64

    def integers(self, name: str, *values: int) -> str:
        """A vector of integers as a constant."""
        return self.constant(name, np.array(values, np.int64))

    def shapes(self) -> None:
        """The length, positions up to it, and the causal mask of a row for each position."""
        self.node("Shape", ["tokens"], "shape")
        zero, one, step = (self.constant(name, np.array(v, np.int64)) for name, v in (("0", 0), ("1", 1), ("d", 1)))
        self.node("Gather", ["shape", zero], "batch", axis=0)
        self.node("Gather", ["shape", one], "length", axis=0)
        self.node("Range", [zero, "length", step], "positions")
        for name in ("batch", "length"):
            self.node("Unsqueeze", [name, self.integers(f"{name}.axis", 0)], f"{name}.1")
        self.node("Concat", ["length.1", "length.1"], "square", axis=0)
        ones = helper.make_tensor("ones.value", TensorProto.FLOAT, [1], [1])
        self.node("ConstantOfShape", ["square"], "ones", value=ones)
        self.node("Trilu", ["ones"], "lower", upper=0)
        self.node("Cast", ["lower"], "visible", to=TensorProto.BOOL)
        self.node("Where", ["visible", self.number("none", 0), self.number("hidden", -np.inf)], "mask")
        head = self.integers("heads", self.heads), self.integers("head", self.width // self.heads)
        self.node("Concat", ["batch.1", "length.1", *head], "apart", axis=0)
        self.node("Concat", ["batch.1", "length.1", self.integers("width", self.width)], "joined", axis=0)

    def number(self, name: str, value: float) -> str:
        """A float32 of rank 0 as a constant."""
        return self.constant(name, np.array(value, np.float32))

    def attention(self, x: str, name: str) -> str:
        """Causal self-attention over all heads."""
        parts = []
        for part, axes in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            y = self.dense(x, f"{name}.{part}", self.width, self.width)
            y = self.node("Reshape", [y, "apart"], f"{name}.{part}.apart")
            parts.append(self.node("Transpose", [y], f"{name}.{part}.heads", perm=axes))
        scores = self.node("MatMul", parts[:2], f"{name}.scores")
        root = self.number(f"{name}.root", float(np.sqrt(self.width / self.heads)))
        scores = self.node("Add", [self.node("Div", [scores, root], f"{name}.scaled"), "mask"], f"{name}.masked")
        shares = self.node("Softmax", [scores], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, parts[2]], f"{name}.mixed")
        mixed = self.node("Transpose", [mixed], f"{name}.back", perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", [mixed, "joined"], f"{name}.joined")
        return self.dense(mixed, f"{name}.out", self.width, self.width)

    def feed_forward(self, x: str, name: str) -> str:
        """Two dense layers with GELU between, by the error function."""
        x = self.dense(x, f"{name}.wide", self.width, 4 * self.width)
        error = self.node(
            "Erf", [self.node("Div", [x, self.number(f"{name}.2", np.sqrt(2))], f"{name}.x")], f"{name}.e"
        )
        factor = self.node("Add", [error, self.number(f"{name}.1", 1)], f"{name}.factor")
        gated = self.node("Mul", [self.node("Mul", [x, factor], f"{name}.twice"), self.number(f"{name}.h", 0.5)], name)
        return self.dense(gated, f"{name}.narrow", 4 * self.width, self.width)


def decoder(generator: np.random.Generator, layers: int) -> onnx.ModelProto:
    graph = Decoder(generator)
    graph.shapes()
    words = graph.normal("words", (graph.words, graph.width), 1)
    places = graph.normal("places", (graph.longest, graph.width), 1)
    x = graph.node("Gather", [words, "tokens"], "words.of", axis=0)
    x = graph.node("Add", [x, graph.node("Gather", [places, "positions"], "places.of", axis=0)], "embedded")
    for layer in range(layers):
        for part, block in (("attend", graph.attention), ("feed", graph.feed_forward)):
            name = f"{part}{layer}"
            made = block(graph.layer_norm(x, f"{name}.norm", graph.width), name)
            x = graph.node("Add", [x, made], f"{name}.added")
    x = graph.layer_norm(x, "last.norm", graph.width)
    head = graph.node("Transpose", [words], "words.transposed", perm=[1, 0])
    x = graph.node("MatMul", [x, head], "logits")
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "length", Decoder.words])
    return graph.model("decoder", [tokens], [logits])


@pytest.mark.slow
def test_a_decoder_with_a_causal_mask_is_right_and_no_position_sees_a_later_one() -> None:
    generator = np.random.default_rng(0)
    model = decoder(generator, 2)
    prepared = backend.prepare(model)
    tokens = generator.integers(0, Decoder.words, (2, 17))
    for given in (tokens, tokens[:1, :5]):
        assert_right(model, given)
    changed = tokens.copy()
    changed[:, 11:] = (changed[:, 11:] + 1) % Decoder.words
    (before,), (after,) = prepared.run([tokens]), prepared.run([changed])
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before[:, 11:] - after[:, 11:]).max() > 0.1
