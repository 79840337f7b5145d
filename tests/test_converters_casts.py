"""Casts by value and by bits: every pair of types, and one answer where a float has no place in an integer."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import helper
from onnx_models import model, value

import tvmbridge.backend as backend
from tvmbridge.errors import ModelError

pytestmark = pytest.mark.compiler

INTEGERS = [f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")]
FLOATS = ["float16", "float32", "float64"]
ODD = [0.0, -0.0, 0.9, -0.9, 1.5, -1.5, 99.99, -128.0, 127.0, 200.0, 300.0, -300.0, 40000.0]
BEYOND = [np.nan, np.inf, -np.inf, 3e9, -3e9, 1e19, -1e19, 1e38]


def kind(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def cast(array, name, **attributes):
    node = helper.make_node("Cast", ["x"], ["y"], to=helper.np_dtype_to_tensor_dtype(kind(name)), **attributes)
    return backend.run_node(node, [array], opset_version=25)[0]


def truncated(array, name):
    """Towards 0, in integers of any width; what int32 (or, for wider types, int64) cannot hold is its lowest number."""
    bits = 8 * kind(name).itemsize
    wide = 32 if bits < 32 or name == "int32" else 64
    whole = []
    for number in array.astype(np.float64).tolist():
        top = 2**64 if name == "uint64" else 2 ** (wide - 1)
        inside = np.isfinite(number) and -(2 ** (wide - 1)) <= number < top
        whole.append((int(number) if inside else -(2 ** (wide - 1))) % 2**bits)
    return np.array(whole, f"uint{bits}").view(name)


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_become_integers_towards_zero_whatever_they_are(source, target):
    with np.errstate(over="ignore"):
        given = np.array(ODD + BEYOND, source)
    if target == "uint64":  # beyond it, what is left is the processor's to say
        given = given[~(np.abs(given.astype(np.float64)) > 1.8e19)]
    np.testing.assert_array_equal(cast(given, target), truncated(given, target))


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", ["int8", "uint16", "int64", "uint64"])
def test_integers_lose_their_upper_bits(source, target):
    limits = np.iinfo(source)
    given = np.array([0, 1, limits.min, limits.max, limits.max // 2, limits.max // 3], source)
    np.testing.assert_array_equal(cast(given, target), given.astype(target))


@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS, "bool", "bfloat16", "int4", "float8_e5m2"])
def test_whatever_is_not_zero_is_true(source):
    given = np.array([0, 1, 3, 0], np.int8).astype(kind(source))
    np.testing.assert_array_equal(cast(given, "bool"), [False, True, True, False])


@pytest.mark.parametrize("source", FLOATS)
def test_halves_nan_and_infinities_are_true_and_both_zeros_false(source):
    given = np.array([0.25, np.nan, -np.inf, 0.0, -0.0], source)
    np.testing.assert_array_equal(cast(given, "bool"), [True, True, True, False, False])


@pytest.mark.parametrize("target", [*FLOATS, "bfloat16"])
@pytest.mark.parametrize("source", ["bool", *INTEGERS])
def test_integers_become_the_nearest_floats(source, target):
    given = np.array([0, 1, 1, 0, 1], bool)
    if source != "bool":
        limits = np.iinfo(source)
        given = np.array([0, 1, limits.min, limits.max, 77], source)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(cast(given, target).astype("f8"), given.astype(kind(target)).astype("f8"))


@pytest.mark.parametrize("source", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("target", ["int8", "uint8", "int32", "float16", "uint4", "int2"])
def test_narrow_integers_become_others_by_their_bits(source, target):
    limits = ml_dtypes.iinfo(kind(source))
    given = np.arange(limits.min, limits.max + 1).astype(kind(source))
    np.testing.assert_array_equal(
        cast(given, target).astype(np.int32), given.astype(np.int32).astype(kind(target)).astype(np.int32)
    )


def test_a_cast_of_a_value_to_its_own_type_leaves_it():
    given = np.array([np.nan, 1.5, -np.inf], np.float32)
    np.testing.assert_array_equal(cast(given, "float32"), given)


@pytest.mark.parametrize("saturate", [0, 1])
def test_a_cast_like_another_tensor_keeps_its_attributes(saturate):
    dtype = kind("float8_e4m3fn")
    number = helper.np_dtype_to_tensor_dtype(dtype)
    node = helper.make_node("CastLike", ["x", "like"], ["y"], saturate=saturate)
    inputs = [value("x", (3,)), value("like", (1,), number)]
    x = np.array([1e4, -2.0, np.inf], np.float32)
    graph = model([node], inputs, [value("y", (3,), number)], opset=25)
    (found,) = backend.run_model(graph, [x, np.zeros(1, dtype)])
    np.testing.assert_array_equal(found.astype(np.float32), [448, -2, 448] if saturate else [np.nan, -2, np.nan])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *(("float32", "int32"), ("uint32", "float32"), ("float64", "uint64"), ("float16", "int16"), ("int8", "uint8")),
        *(("bfloat16", "uint16"), ("float16", "bfloat16"), ("uint8", "float8_e4m3fn"), ("float8_e5m2", "int8")),
        *(("int4", "uint4"), ("float4_e2m1fn", "int4"), ("bool", "uint8"), ("uint8", "bool")),
    ],
)
def test_bits_are_kept_where_only_the_type_changes(source, target):
    codes = np.arange(2 if source == "bool" or target == "bool" else 16, dtype=np.uint64)
    if codes.size == 16 and "4" not in (source.strip("uint"), target.strip("uint")) and "4_e2" not in source:
        codes = np.random.default_rng(1).integers(0, 2**63, 31, np.uint64) * 2 + 1
    given = codes.astype(f"uint{8 * kind(source).itemsize}").view(kind(source))
    if np.dtype(kind(source)).kind in "fV":
        with np.errstate(invalid="ignore"):
            given = given[~np.isnan(given.astype(np.float64))]
    node = helper.make_node("BitCast", ["x"], ["y"], to=helper.np_dtype_to_tensor_dtype(kind(target)))
    (found,) = backend.run_node(node, [given], opset_version=26)
    bits = f"uint{8 * kind(target).itemsize}"
    assert found.dtype == kind(target)
    wanted, odd = given.view(kind(target)), np.zeros(given.shape, bool)
    if target not in INTEGERS and target != "bool":
        with np.errstate(invalid="ignore"):
            odd = np.isnan(wanted.astype(np.float64))
    mask = 15 if target in ("int4", "uint4") else -1
    np.testing.assert_array_equal(found.view(bits)[~odd], wanted.view(bits)[~odd] & np.array(mask).astype(bits))


def test_bits_of_another_number_are_refused():
    node = helper.make_node("BitCast", ["x"], ["y"], to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int16)))
    with pytest.raises(ModelError):
        backend.run_node(node, [np.zeros(3, np.float32)], opset_version=26)
