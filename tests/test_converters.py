"""Our own converters compute what ONNX Runtime computes, NaN and infinities included, and leave no opaque kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from kernels import run_lowered
from onnx import TensorProto
from onnx_models import FLOAT, INT64, model, one_node, random_weight, value
from tvm import relax

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
HALF, DOUBLE, INT32 = TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32


def scalar(number: float, dtype: str = "f4") -> np.ndarray:
    return np.array(number, dtype)


def odd_values(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers around zero and, of floats, NaN, both infinities, zeros of both signs."""
    drawn = np.random.default_rng(3).normal(size=shape) * 5
    if dtype.kind == "f":
        drawn.flat[::7] = np.nan
        drawn.flat[1::11] = np.inf
        drawn.flat[2::13] = -np.inf
        drawn.flat[3::17] = -0.0
    return drawn.astype(dtype)


def assert_same(graph: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    imported = import_onnx(graph)
    (output,) = run_lowered(lower(imported, NATIVE), NATIVE, [feeds[spec.name] for spec in imported.signature.inputs])
    (expected,) = ReferenceSession(graph, threads=1).run(feeds).values()
    assert output.dtype == expected.dtype
    np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance)


def has_opaque_kernel(graph: onnx.ModelProto) -> bool:
    module = import_onnx(graph).module
    return any(not isinstance(function, relax.Function) for function in module.functions.values())


ELEMENTWISE = {
    "Relu": one_node("Relu", shape=(3, 17)),
    "Relu of float16": one_node("Relu", shape=(3, 17), dtype=HALF),
    "Clip": one_node("Clip", scalar(0), scalar(6), shape=(3, 17)),
    "Clip of one bound": one_node("Clip", None, scalar(2), shape=(3, 17)),
    "Clip of no bound": one_node("Clip", shape=(3, 17)),
    "Clip to NaN": one_node("Clip", scalar(np.nan), scalar(2), shape=(3, 17)),
    "Clip to nothing": one_node("Clip", scalar(3), scalar(-3), shape=(3, 17)),
    "Clip of op-set 6": one_node("Clip", shape=(3, 17), opset=6, min=-1.0, max=2.5),
    "Clip of float64": one_node("Clip", scalar(0.1, "f8"), scalar(1 / 3, "f8"), shape=(3, 17), dtype=DOUBLE),
    "Clip of integers": one_node("Clip", scalar(-3, "i8"), scalar(2**62, "i8"), shape=(3, 17), dtype=INT64),
    "Clip of integers below": one_node("Clip", scalar(1, "i4"), shape=(3, 17), dtype=INT32),
    "Elu": one_node("Elu", shape=(3, 17), alpha=0.7),
    "Selu": one_node("Selu", shape=(3, 17)),
    "PRelu": one_node("PRelu", random_weight((17,)), shape=(3, 17)),
    "PRelu of two axes": one_node("PRelu", random_weight((5, 1, 3)), shape=(2, 5, 4, 3)),
    "PRelu of one slope": one_node("PRelu", scalar(0.2).reshape(1), shape=(2, 5, 4, 3)),
    "ThresholdedRelu": one_node("ThresholdedRelu", shape=(3, 17), alpha=0.5),
    "LeakyRelu": one_node("LeakyRelu", shape=(3, 17), alpha=0.2),
    "HardSigmoid": one_node("HardSigmoid", shape=(3, 17)),
    "HardSwish": one_node("HardSwish", shape=(3, 17)),
    "Softplus": one_node("Softplus", shape=(3, 17)),
    "Max": one_node("Max", random_weight((3, 17)), scalar(0.5), shape=(3, 17)),
    "Min": one_node("Min", random_weight((17,)), scalar(0.5), shape=(3, 17)),
}


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_elementwise_operators_agree_on_odd_values_too(case: str) -> None:
    graph = ELEMENTWISE[case]
    tensor = graph.graph.input[0].type.tensor_type
    shape = tuple(axis.dim_value for axis in tensor.shape.dim)
    x = odd_values(shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    if case in ("Elu", "Selu", "Softplus", "HardSwish"):  # what infinity times zero is, each library decides for itself
        x = np.where(np.isinf(x), 1, x)
    assert_same(graph, {"x": x}, 1e-3 if x.dtype == np.float16 else 1e-5)
    assert not has_opaque_kernel(graph)


def test_bounds_that_only_the_run_decides_are_taken() -> None:
    node = onnx.helper.make_node("Clip", ["x", "low", "high"], ["y"])
    graph = model([node], [value("x", (3, 5)), value("low", ()), value("high", ())], [value("y", None)])
    x = odd_values((3, 5), np.dtype("f4"))
    for low, high in ((-1, 2), (np.nan, 2), (-1, np.nan)):
        assert_same(graph, {"x": x, "low": scalar(low), "high": scalar(high)})


PADS = np.array([0, 1, 2, 0, 0, 2, 1, 3])
PADDED = {
    "zeros": one_node("Pad", PADS, shape=(1, 3, 7, 5)),
    "a value": one_node("Pad", PADS, scalar(-1.5), shape=(1, 3, 7, 5)),
    "minus infinity": one_node("Pad", PADS, scalar(-np.inf), shape=(1, 3, 7, 5)),
    "reflected": one_node("Pad", PADS, shape=(1, 3, 7, 5), mode="reflect"),
    "edges": one_node("Pad", PADS, shape=(1, 3, 7, 5), mode="edge"),
    "some axes": one_node("Pad", np.array([1, 2, 3, 4]), None, np.array([-1, 1]), shape=(1, 3, 7, 5), opset=18),
    "nothing": one_node("Pad", np.zeros(8, "i8"), shape=(1, 3, 7, 5)),
    "integers": one_node("Pad", PADS, scalar(7, "i8"), shape=(1, 3, 7, 5), dtype=INT64),
}


@pytest.mark.parametrize("case", PADDED)
def test_pads_of_all_modes_agree(case: str) -> None:
    graph = PADDED[case]
    dtype = "i8" if case == "integers" else "f4"
    assert_same(graph, {"x": (np.random.default_rng(0).normal(size=(1, 3, 7, 5)) * 9).astype(dtype)})
    assert not has_opaque_kernel(graph)


def test_pads_that_crop_agree() -> None:
    graph = one_node("Pad", np.array([0, 0, -1, 2, 0, 0, -2, -1]), shape=(1, 3, 7, 5), dtype=FLOAT)
    assert_same(graph, {"x": np.random.default_rng(0).normal(size=(1, 3, 7, 5)).astype("f4")})
