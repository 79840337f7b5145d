"""Norms that exporters write out become one kernel, and compute what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import lower_expression, random_array, run_lowered
from onnx import helper
from onnx_models import model, random_weight, value
from test_channels_last import NATIVE, check, node
from tvm import relax

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

SHAPE = (2, 7, 24)
WEIGHTS = {
    "scale": random_weight((24,), 1) + 1,
    "wide_scale": random_weight((1, 1, 24), 1) + 1,
    "shift": random_weight((24,), 2),
    "dense": random_weight((24, 24), 3),
    "two": np.array(2, "f4"),
    "three": np.array(3, "f4"),
    "one": np.array(1, "f4"),
    "epsilon": np.array(1e-5, "f4"),
    "few": random_weight((7, 1), 4),
}
CENTRE = [node("ReduceMean", "h", "mean", axes=[-1]), node("Sub", "h mean", "d")]
ROOT = [
    node("Pow", "d two", "square"),
    node("ReduceMean", "square", "variance", axes=[-1]),
    node("Add", "variance epsilon", "raised"),
    node("Sqrt", "raised", "root"),
]
DIVIDE = [node("Div", "d root", "normal")]
WEIGH = [node("Mul", "normal scale", "weighed"), node("Add", "weighed shift", "y")]
NORMS = {
    "layer norm": [*CENTRE, *ROOT, *DIVIDE, *WEIGH],
    "layer norm, operands the other way round": [
        *CENTRE,
        node("Mul", "d d", "square"),
        *ROOT[1:2],
        node("Add", "epsilon variance", "raised"),
        *ROOT[3:],
        *DIVIDE,
        node("Mul", "wide_scale normal", "weighed"),
        node("Add", "shift weighed", "y"),
    ],
    "RMS norm": [
        node("Identity", "h", "d"),
        *ROOT,
        node("Reciprocal", "root", "inverse"),
        node("Mul", "d inverse", "normal"),
        node("Mul", "scale normal", "y"),
    ],
}
OTHERS = {
    "of third powers": [*CENTRE, node("Abs", "d", "a"), node("Pow", "a three", "square"), *ROOT[1:], *DIVIDE, *WEIGH],
    "along another axis": [
        node("ReduceMean", "h", "mean", axes=[1]),
        node("Sub", "h mean", "d"),
        node("Pow", "d two", "square"),
        node("ReduceMean", "square", "variance", axes=[1]),
        *ROOT[2:],
        *DIVIDE,
        *WEIGH,
    ],
    "weighed by rows": [*CENTRE, *ROOT, *DIVIDE, node("Mul", "normal few", "weighed"), node("Add", "weighed few", "y")],
}


def kernels(nodes: list) -> list[str]:
    nodes = [node("MatMul", "x dense", "h"), *nodes]
    used = {name for entry in nodes for name in entry.input}
    weights = {name: array for name, array in WEIGHTS.items() if name in used}
    graph = model(nodes, [value("x", SHAPE)], [value("y", None)], weights)
    x = (np.random.default_rng(0).standard_normal(SHAPE) * 2 + 0.3).astype("f4")
    return [kernel.name for kernel in check(graph, {"x": x}).kernels]


@pytest.mark.parametrize("case", NORMS)
def test_a_written_out_norm_is_one_kernel(case: str) -> None:
    assert len(kernels(NORMS[case])) == 2


@pytest.mark.parametrize("case", OTHERS)
def test_what_only_looks_like_a_norm_is_left_alone(case: str) -> None:
    assert not any("norm" in name for name in kernels(OTHERS[case]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_batch_norm_that_no_convolution_takes_in_is_a_scale_and_a_shift(dtype: str) -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=6).astype(dtype) for name in ("gamma", "beta", "mean")}
    weights["variance"] = generator.uniform(0.5, 2, 6).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    norm = node("BatchNormalization", "x gamma beta mean variance", "n", epsilon=0.01)
    inputs, outputs = [value("x", (2, 6, 5, 4), kind)], [value("y", None, kind)]
    graph = model([norm, node("Relu", "n", "y")], inputs, outputs, weights)
    x = generator.normal(size=(2, 6, 5, 4)).astype(dtype)
    imported = import_onnx(graph)
    lowered = lower(imported, NATIVE)
    (output,) = run_lowered(lowered, NATIVE, [x])
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    np.testing.assert_allclose(output, ReferenceSession(graph).run({"x": x})["y"], rtol=tolerance, atol=tolerance)
    assert [kernel.name for kernel in lowered.kernels] == ["fused_multiply_add_relu"]


@pytest.mark.parametrize("layout", ["InstanceNormalization", "GroupNormalization"])
def test_a_mean_far_from_zero_costs_no_digits(layout: str) -> None:
    weights = {"scale": random_weight((6,), 1) + 1, "shift": random_weight((6,), 2)}
    groups = {"num_groups": 3} if layout == "GroupNormalization" else {}
    graph = model(
        [node(layout, "x scale shift", "y", **groups)],
        [value("x", (2, 6, 9, 5))],
        [value("y", None)],
        weights,
        opset=21,
    )
    imported = import_onnx(graph)
    x = (np.random.default_rng(0).normal(size=(2, 6, 9, 5)) + 64).astype("f4")
    lowered = lower(imported, NATIVE)
    (output,) = run_lowered(lowered, NATIVE, [x])
    rows = x.astype("f8").reshape(2, groups.get("num_groups", 6), -1)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    expected = normal.reshape(x.shape) * weights["scale"].reshape(-1, 1, 1) + weights["shift"].reshape(-1, 1, 1)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-5)
    assert len(lowered.kernels) == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((37,), [-1]), ((5, 7), [0, 1]), ((2, 3, 7, 5), [1]), ((2, 3, 7, 5), [-1, -3]), ((2, 1, 3), [1])],
)
@pytest.mark.parametrize("centred", [True, False], ids=["layer_norm", "rms_norm"])
def test_a_norm_along_any_axes_is_one_kernel_and_agrees_with_numpy(
    shape: tuple[int, ...], axes: list[int], dtype: str, centred: bool
) -> None:
    generator = np.random.default_rng(0)
    weights = [random_array(generator, [shape[axis] for axis in axes], dtype) for _ in range(1 + centred)]

    def build(x: relax.Expr) -> relax.Expr:
        operator = relax.op.nn.layer_norm if centred else relax.op.nn.rms_norm
        return operator(x, *(relax.const(weight, dtype) for weight in weights), axes, 1e-3)

    x = random_array(generator, shape, dtype)
    lowered = lower_expression(build, [(shape, dtype)], NATIVE)
    (output,) = run_lowered(lowered, NATIVE, [x])
    wide = x.astype("f8")
    distances = wide - wide.mean(tuple(axes), keepdims=True) * centred
    normal = distances / np.sqrt((distances**2).mean(tuple(axes), keepdims=True) + 1e-3)
    places = [axis % len(shape) for axis in axes]
    rest = [axis for axis in range(len(shape)) if axis not in places]
    first, last = (
        np.transpose(weight.reshape(*weight.shape, *[1] * len(rest)), np.argsort([*places, *rest]))
        for weight in (weights[0], weights[-1])
    )
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2}[dtype]
    np.testing.assert_allclose(output, normal * first + last * centred, rtol=tolerance, atol=tolerance)
    assert [kernel.name for kernel in lowered.kernels] == ["layer_norm" if centred else "rms_norm"]
