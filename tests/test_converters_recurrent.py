"""LSTM, GRU and RNN compute what ONNX Runtime computes: directions, activations, lengths, peepholes, layouts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import FLOAT, INT64, model, random_weight, value

from tvmbridge.backend import run_model
from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend import import_onnx
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
BOUNDED = ["HardSigmoid", "Sigmoid", "Softsign", "Tanh"]
ACTIVATIONS = [*BOUNDED, "Affine", "Elu", "LeakyRelu", "Relu", "Softplus"]
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
STEPS, SEQUENCES, FEATURES, UNITS = 7, 3, 5, 11


def recurrent(
    kind: str,
    *,
    directions: int = 1,
    sequences: int = SEQUENCES,
    units: int = UNITS,
    dtype: int = FLOAT,
    lengths: np.ndarray | str | None = None,
    states: bool = True,
    bias: bool = True,
    peepholes: bool = False,
    constant: bool = True,
    **attributes: object,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one operator and what to feed it. lengths: an array is a constant, "run" an input."""
    rows, numbers = GATES[kind] * units, helper.tensor_dtype_to_np_dtype(dtype)
    x_shape, state = (STEPS, sequences, FEATURES), (directions, sequences, units)
    if attributes.get("layout"):
        x_shape, state = (sequences, STEPS, FEATURES), (sequences, directions, units)
    shapes: dict[str, tuple[int, ...]] = {
        "x": x_shape,
        "w": (directions, rows, FEATURES),
        "r": (directions, rows, units),
    }
    if bias:
        shapes["b"] = (directions, 2 * rows)
    if states:
        shapes["h"] = state
        if kind == "LSTM":
            shapes["c"] = state
    if peepholes:
        shapes["p"] = (directions, 3 * units)
    generator = np.random.default_rng(sum(map(ord, kind)))
    arrays = {name: generator.standard_normal(shape).astype(numbers) for name, shape in shapes.items()}
    arrays["r"] = (arrays["r"] / np.sqrt(units)).astype(numbers)
    names = ["x", "w", "r", "b" if bias else "", "lengths" if lengths is not None else "", "h" if states else ""]
    if kind == "LSTM":
        names += ["c" if states else "", "p" if peepholes else ""]
    while not names[-1]:
        names.pop()
    if lengths is not None:
        of_run = isinstance(lengths, str)
        arrays["lengths"] = np.array([STEPS, 0, 4][:sequences], np.int32) if of_run else lengths
    weights = {name: arrays[name] for name in arrays if constant and name not in ("x", "h", "c")}
    if isinstance(lengths, str):
        weights.pop("lengths", None)
    feeds = {name: array for name, array in arrays.items() if name not in weights}
    outputs = ["y", "yh", "yc"][: 1 + STATES[kind]]
    node = helper.make_node(kind, names, outputs, name="the_node", hidden_size=units, **attributes)
    inputs = [
        value(name, array.shape, TensorProto.INT32 if name == "lengths" else dtype) for name, array in feeds.items()
    ]
    return model([node], inputs, [value(name, None, dtype) for name in outputs], weights, opset=22), feeds


def assert_like_the_reference(graph: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    outputs = run_model(graph, list(feeds.values()))
    expected = ReferenceSession(graph, threads=1).run(feeds)
    for entry, output in zip(graph.graph.output, outputs, strict=True):
        wanted = expected[entry.name]
        assert (output.dtype, output.shape) == (wanted.dtype, wanted.shape)
        scale = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(output - wanted).max() <= tolerance * scale, entry.name


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_each_direction(kind, direction):
    graph, feeds = recurrent(kind, directions=1 + (direction == "bidirectional"), direction=direction)
    assert_like_the_reference(graph, feeds)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(
    ("direction", "lengths"), [("forward", "run"), ("reverse", np.array([2, 7, 1], np.int32)), ("bidirectional", "run")]
)
def test_sequences_that_end_early(kind, direction, lengths):
    directions = 1 + (direction == "bidirectional")
    graph, feeds = recurrent(kind, directions=directions, direction=direction, lengths=lengths)
    if isinstance(lengths, str):
        feeds["lengths"] = np.array([7, 3, 4], np.int32)
    assert_like_the_reference(graph, feeds)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_activations_with_their_parameters_and_a_clip(data):
    kind = data.draw(st.sampled_from(sorted(GATES)))
    directions = data.draw(st.integers(1, 2))
    count = FUNCTIONS[kind] * directions
    given = {
        "activations": [
            data.draw(
                st.sampled_from(BOUNDED if index % FUNCTIONS[kind] == 0 else ACTIVATIONS)
            )  # gates keep it bounded
            for index in range(count)
        ],
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    for name in ("activation_alpha", "activation_beta"):
        given[name] = data.draw(st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=count, max_size=count))
    if data.draw(st.booleans()):
        given["clip"] = data.draw(st.sampled_from([0.5, 2.0]))
    graph, feeds = recurrent(kind, directions=directions, units=data.draw(st.sampled_from([1, 3, 19])), **given)
    assert_like_the_reference(graph, feeds)


@pytest.mark.parametrize("name", ["ScaledTanh", "ThresholdedRelu"])
def test_activations_that_onnx_runtime_takes_for_an_rnn_alone(name):
    graph, feeds = recurrent("RNN", activations=[name], activation_alpha=[0.75], activation_beta=[0.5])
    assert_like_the_reference(graph, feeds)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_gru_resets_before_or_after_its_product(direction, after):
    directions = 1 + (direction == "bidirectional")
    graph, feeds = recurrent("GRU", directions=directions, direction=direction, linear_before_reset=after)
    assert_like_the_reference(graph, feeds)


def test_a_gru_that_resets_after_its_product_without_a_bias():
    assert_like_the_reference(*recurrent("GRU", bias=False, linear_before_reset=1))


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_with_peepholes(directions):
    direction = "bidirectional" if directions == 2 else "forward"
    assert_like_the_reference(*recurrent("LSTM", directions=directions, direction=direction, peepholes=True))


def test_an_lstm_that_forgets_what_it_does_not_take_in():
    assert_like_the_reference(*recurrent("LSTM", input_forget=1))


@pytest.mark.parametrize("kind", GATES)
def test_states_and_biases_that_are_not_given_are_zero(kind):
    assert_like_the_reference(*recurrent(kind, states=False, bias=False))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("units", [1, 16, 37])
def test_weights_that_the_run_gives(kind, units):
    assert_like_the_reference(*recurrent(kind, units=units, constant=False))


@pytest.mark.parametrize("kind", GATES)
def test_float64(kind):
    graph, feeds = recurrent(kind, dtype=TensorProto.DOUBLE)
    for output, wanted in zip(
        run_model(graph, list(feeds.values())), ReferenceEvaluator(graph).run(None, feeds), strict=False
    ):
        np.testing.assert_allclose(output, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", GATES)
def test_float16_is_computed_in_float32(kind):
    graph, feeds = recurrent(kind, dtype=TensorProto.FLOAT16)
    outputs = run_model(graph, list(feeds.values()))
    wide, _ = recurrent(kind, constant=False)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer} | feeds
    ordered = {entry.name: arrays[entry.name].astype(np.float32) for entry in wide.graph.input}
    expected = ReferenceSession(wide, threads=1).run(ordered)
    for entry, output in zip(graph.graph.output, outputs, strict=True):
        assert output.dtype == np.float16
        np.testing.assert_allclose(output, expected[entry.name], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", GATES)
def test_sequences_that_lie_first(kind):
    """ONNX Runtime has no such layout, ONNX's reference has it for one step to the next."""
    graph, feeds = recurrent(kind, layout=1)
    swapped, plain = recurrent(kind)
    for name in feeds:
        plain[name] = np.ascontiguousarray(feeds[name].swapaxes(0, 1))
    expected = ReferenceSession(swapped, threads=1).run(plain)
    outputs = run_model(graph, list(feeds.values()))
    np.testing.assert_allclose(outputs[0], expected["y"].transpose(2, 0, 1, 3), rtol=1e-4, atol=1e-5)
    for output, name in zip(outputs[1:], ("yh", "yc"), strict=False):
        np.testing.assert_allclose(output, expected[name].swapaxes(0, 1), rtol=1e-4, atol=1e-5)


def test_a_sequence_of_no_steps_keeps_its_state():
    graph, feeds = recurrent("LSTM", lengths="run", direction="bidirectional", directions=2)
    outputs = run_model(graph, list(feeds.values()))
    assert not outputs[0][:, :, 1].any()
    np.testing.assert_array_equal(outputs[1][:, 1], feeds["h"][:, 1])


def test_lengths_beyond_the_steps_are_cut_to_them():
    graph, feeds = recurrent("GRU", lengths="run", direction="reverse")
    feeds["lengths"] = np.array([7, 7, 7], np.int32)
    wanted = run_model(graph, list(feeds.values()))
    feeds["lengths"] = np.array([7, 1 << 30, 8], np.int32)
    for output, expected in zip(run_model(graph, list(feeds.values())), wanted, strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"activations": ["Tanh"]}, "it names 1 activations, not 3 for each"),
        ({"activations": ["Tanh", "Swish", "Tanh"]}, "the activation 'Swish' is not one of ONNX"),
        ({"direction": "sideways"}, "the direction 'sideways' is not one of ONNX"),
    ],
)
def test_what_onnx_does_not_define_is_refused_by_name(attributes, why):
    graph, _ = recurrent("LSTM", **attributes)
    with pytest.raises(UnsupportedOperatorError, match=why) as caught:
        import_onnx(graph)
    assert "the_node" in str(caught.value)


def test_a_tagger_of_two_bidirectional_lstms():
    """Token ids [2, 13] → tags [2, 13, 6]: embedding, LSTM ×2, linear."""
    words, size, units, tags = 50, 12, 17, 6
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["e"], ["h0"], perm=[1, 0, 2]),
    ]
    weights = {"table": random_weight((words, size)), "shape": np.array([0, 0, -1], np.int64)}
    features = size
    for layer in range(2):
        for name, axes in {"w": (4 * units, features), "r": (4 * units, units), "b": (8 * units,)}.items():
            weights[f"{name}{layer}"] = np.stack([random_weight(axes, 10 * layer + side) for side in (1, 2)])
        names = [f"h{layer}", *(f"{name}{layer}" for name in "wrb")]
        nodes += [
            helper.make_node("LSTM", names, [f"y{layer}"], hidden_size=units, direction="bidirectional"),
            helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{layer}", "shape"], [f"h{layer + 1}"]),
        ]
        features = 2 * units
    weights["out"] = random_weight((features, tags), 7)
    nodes += [
        helper.make_node("MatMul", ["h2", "out"], ["steps_first"]),
        helper.make_node("Transpose", ["steps_first"], ["scores"], perm=[1, 0, 2]),
    ]
    graph = model(nodes, [value("ids", (2, 13), INT64)], [value("scores", (2, 13, tags))], weights)
    ids = np.random.default_rng(5).integers(0, words, (2, 13))
    wanted = ReferenceSession(graph, threads=1).run({"ids": ids})["scores"]
    (found,) = run_model(graph, [ids])
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
