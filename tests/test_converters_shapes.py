"""What rearranges, joins, cuts and repeats tensors gives what ONNX's reference gives, for every kind of element."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx_models import INT64, model, one_node, value

import tvmbridge.backend as backend
from tvmbridge.errors import UnboundValueError
from tvmbridge.frontend import import_onnx

pytestmark = pytest.mark.compiler

DTYPES = ("float32", "float64", "float16", "bool", "int8", "uint16", "int64")


def kind(dtype: str) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    drawn = np.random.default_rng(5).normal(size=shape) * 40
    return (drawn > 0) if dtype == "bool" else abs(drawn).astype(dtype) if dtype[0] == "u" else drawn.astype(dtype)


def assert_like_reference(graph: onnx.ModelProto, *feeds: np.ndarray) -> None:
    expected = ReferenceEvaluator(graph).run(None, dict(zip((e.name for e in graph.graph.input), feeds, strict=True)))
    outputs = backend.run_model(graph, list(feeds))
    assert len(outputs) == len(expected)
    for output, other in zip(outputs, expected, strict=True):
        assert output.dtype == other.dtype
        np.testing.assert_array_equal(output, other)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


CASES = {
    "Reshape": one_node("Reshape", ints(0, -1, 7), shape=(5, 3, 7)),
    "Flatten": one_node("Flatten", shape=(5, 3, 7), axis=-1),
    "Squeeze": one_node("Squeeze", ints(-1, 1), shape=(5, 1, 7, 1)),
    "Squeeze of all": one_node("Squeeze", shape=(5, 1, 7, 1)),
    "Unsqueeze": one_node("Unsqueeze", ints(3, 0, -1), shape=(5, 3)),
    "Transpose": one_node("Transpose", shape=(5, 3, 7), perm=[2, 0, 1]),
    "Transpose of all": one_node("Transpose", shape=(5, 3, 7)),
    "Expand": one_node("Expand", ints(2, 1, 3, 7), shape=(5, 1, 7)),
    "Expand to less": one_node("Expand", ints(1, 1), shape=(5, 3, 7)),
    "Tile": one_node("Tile", ints(1, 3, 2), shape=(5, 3, 2)),
    "Slice": one_node("Slice", ints(1, -3), ints(100, -1), ints(0, 2), shape=(5, 3, 7)),
    "Slice backwards": one_node("Slice", ints(-1, 100), ints(-100, 0), ints(0, 2), ints(-1, -3), shape=(5, 3, 7)),
    "Slice of all": one_node("Slice", ints(0), ints(2**63 - 1), shape=(5, 3, 7)),
    "Split": one_node("Split", ints(2, 0, 5), shape=(5, 3, 7), axis=-1, outputs=("y",)),
    "DepthToSpace": one_node("DepthToSpace", shape=(2, 18, 5, 3), blocksize=3),
    "DepthToSpace by columns": one_node("DepthToSpace", shape=(2, 18, 5, 3), blocksize=3, mode="CRD"),
    "SpaceToDepth": one_node("SpaceToDepth", shape=(2, 3, 6, 9), blocksize=3),
    "SpaceToDepth by columns": one_node("SpaceToDepth", shape=(2, 3, 6, 9), blocksize=3, mode="CRD", opset=28),
}


def of_type(graph: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    for entry in (changed.graph.input[0], *changed.graph.output):
        entry.type.tensor_type.elem_type = kind(dtype)
    return changed


@pytest.mark.parametrize("case", [name for name in CASES if name != "Split"])
def test_shapes_agree(case: str) -> None:
    graph = CASES[case]
    shape = tuple(axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim)
    dtype = DTYPES[list(CASES).index(case) % len(DTYPES)]
    assert_like_reference(of_type(graph, dtype), numbers(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_moved(dtype: str) -> None:
    nodes = [
        onnx.helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["part"]),
        onnx.helper.make_node("Concat", ["part", "x"], ["joined"], axis=1),
        onnx.helper.make_node("Transpose", ["joined"], ["turned"], perm=[1, 0]),
        onnx.helper.make_node("Tile", ["turned", "repeats"], ["y"]),
    ]
    weights = {"starts": ints(-1), "ends": ints(-9), "axes": ints(1), "steps": ints(-2), "repeats": ints(1, 2)}
    graph = model(nodes, [value("x", (3, 7), kind(dtype))], [value("y", None, kind(dtype))], weights)
    assert_like_reference(graph, numbers((3, 7), dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int4", "uint2"])
def test_types_narrower_than_the_machine_has_are_moved(dtype: str) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype)))
    nodes = [
        onnx.helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        onnx.helper.make_node("Transpose", ["flat"], ["turned"]),
        onnx.helper.make_node("Pad", ["turned", "pads"], ["y"], mode="wrap"),
    ]
    weights = {"shape": ints(7, -1), "pads": ints(1, 0, 0, 2)}
    graph = model(nodes, [value("x", (2, 7, 3), kind)], [value("y", None, kind)], weights, opset=25)
    assert_like_reference(graph, abs(numbers((2, 7, 3)) / 40).astype(getattr(ml_dtypes, dtype)))


def split(sizes: np.ndarray | None, count: int, opset: int = 18, **attributes: int) -> onnx.ModelProto:
    names = [f"y{k}" for k in range(count)]
    node = onnx.helper.make_node("Split", ["x", *(["sizes"] if sizes is not None else [])], names, **attributes)
    weights = {} if sizes is None else {"sizes": sizes}
    return model([node], [value("x", (3, 7))], [value(name, None) for name in names], weights, opset=opset)


@pytest.mark.parametrize(
    "graph",
    [
        split(ints(2, 5), 2, axis=-1),
        split(ints(3, 0, 4), 3, axis=1),
        split(None, 3, axis=1, num_outputs=3),
        split(None, 3, opset=13),
        split(ints(3), 1),
    ],
)
def test_parts_agree(graph: onnx.ModelProto) -> None:
    assert_like_reference(graph, numbers((3, 7)))


def test_an_operand_without_elements_is_left_out_of_a_concat() -> None:
    node = onnx.helper.make_node("Concat", ["empty", "x"], ["y"], axis=0)
    graph = model([node], [value("x", (3, 5))], [value("y", None)], {"empty": np.empty((0, 5), np.float32)})
    assert_like_reference(graph, numbers((3, 5)))


@pytest.mark.parametrize(
    ("op_type", "names", "asked"),
    [
        ("Reshape", ["x", "n"], {"n"}),
        ("Expand", ["x", "n"], {"n"}),
        ("Tile", ["x", "n"], {"n"}),
        ("Squeeze", ["x", "n"], {"n"}),
        ("Unsqueeze", ["x", "n"], {"n"}),
        ("Slice", ["x", "zero", "n"], {"n"}),
        ("ConstantOfShape", ["n"], {"n"}),
    ],
)
def test_what_decides_a_shape_is_asked_for_by_name(op_type: str, names: list[str], asked: set[str]) -> None:
    node = onnx.helper.make_node(op_type, names, ["y"])
    inputs = [value("x", (1, 6)), value("n", (2,), INT64)]
    with pytest.raises(UnboundValueError, match=op_type) as caught:
        import_onnx(model([node], inputs, [value("y", None)], {"zero": ints(0, 0)}))
    assert set(caught.value.inputs) == asked


NEAR = np.array([[0, -1, 2], [4, 7, -6]])


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["int64", "float32", "uint8"])
def test_one_hot_codes_agree_also_out_of_range(axis: int, dtype: str) -> None:
    values = np.array([-3, 5], "int32")
    node = onnx.helper.make_node("OneHot", ["x", "depth", "values"], ["y"], axis=axis)
    weights = {"depth": np.array(5.0, np.float32), "values": values}
    inputs = [value("x", (2, 3), kind(dtype))]
    assert_like_reference(model([node], inputs, [value("y", None, kind("int32"))], weights), NEAR.astype(dtype))


def test_one_hot_takes_values_of_the_run() -> None:
    node = onnx.helper.make_node("OneHot", ["x", "depth", "values"], ["y"])
    inputs = [value("x", (2, 3), INT64), value("values", (2,))]
    graph = model([node], inputs, [value("y", None)], {"depth": np.array(6)})
    assert_like_reference(graph, NEAR, np.array([0.25, -2], np.float32))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-2, 0, 3, 100, None])
def test_triangles_agree(upper: int, k: int | None) -> None:
    dtype = "bool" if k == 0 else "int8" if k == 3 else "float32"
    graph = one_node("Trilu", None if k is None else np.array(k), shape=(2, 4, 5), dtype=kind(dtype), upper=upper)
    assert_like_reference(graph, numbers((2, 4, 5), dtype))


def test_the_diagonal_of_a_triangle_may_be_computed() -> None:
    node = onnx.helper.make_node("Trilu", ["x", "k"], ["y"], upper=0)
    graph = model([node], [value("x", (4, 5)), value("k", (), INT64)], [value("y", None)])
    assert_like_reference(graph, numbers((4, 5)), np.array(-1))


def test_large_constants_are_made_where_they_are_used() -> None:
    nodes = [
        onnx.helper.make_node("Range", ["start", "limit", "delta"], ["range"]),
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=onnx.numpy_helper.from_array(ints(7))),
        onnx.helper.make_node("Add", ["range", "ones"], ["sum"]),
        onnx.helper.make_node("Add", ["sum", "x"], ["y"]),
    ]
    weights = {"start": np.array(5), "limit": np.array(-30_000), "delta": np.array(-2), "shape": ints(15_003)}
    graph = model(nodes, [value("x", (1,), INT64)], [value("y", None, INT64)], weights)
    assert_like_reference(graph, ints(3))


@pytest.mark.parametrize(("dtype", "k"), [(None, 1), (TensorProto.DOUBLE, -2), (TensorProto.BOOL, 0)])
def test_identities_agree(dtype: int | None, k: int) -> None:
    attributes = {} if dtype is None else {"dtype": dtype}
    node = onnx.helper.make_node("EyeLike", ["x"], ["y"], k=k, **attributes)
    graph = model([node], [value("x", (4, 7), kind("int32"))], [value("y", None, dtype or kind("int32"))])
    assert_like_reference(graph, numbers((4, 7), "int32"))
