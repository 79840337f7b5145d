"""Types that TVM cannot compute in: their bits pass through unchanged, and values round to them as ml_dtypes rounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, value

import tvmbridge.backend as backend
from tvmbridge.bundle.dtypes import ELEMENT_BYTES, EXTENDED
from tvmbridge.frontend.operator import CARRIERS

pytestmark = pytest.mark.compiler

FLOAT8 = sorted(name for name in CARRIERS if name.startswith("float8"))
BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def numpy_type(name):
    return np.dtype(getattr(ml_dtypes, name))


def number(name):
    return helper.np_dtype_to_tensor_dtype(numpy_type(name))


def bits(array):
    return np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}")


def transposed(name, array):
    node = helper.make_node("Transpose", ["x"], ["y"])
    shape = array.shape
    graph = model([node], [value("x", shape, number(name))], [value("y", shape[::-1], number(name))], opset=25)
    return backend.run_model(graph, [array])[0]


def every(name):
    """Every value of the type, in a ragged matrix."""
    codes = np.arange(1 << BITS.get(name, 8 * numpy_type(name).itemsize))
    return codes.astype(f"uint{8 * numpy_type(name).itemsize}").view(numpy_type(name)).reshape(-1, 4)


def odd_floats(dtype):
    """Halves between neighbours of coarser types and next to them, NaN, infinities, zeros, what has no normal form."""
    drawn = np.random.default_rng(5).integers(0, 1 << 32, 3001, dtype=np.uint32)
    coarse = (drawn & np.uint32(0xFFF80000)) | np.tile(np.array([0, 1, 0x8000, 0x7FFF, 0x8001], np.uint32), 601)[:3001]
    near_one = np.random.default_rng(6).normal(size=997).astype(np.float32) * 30
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 465, 57344, 61440, 61441, 1e-40, 2**-127], "f4")
    values = np.concatenate([coarse.view(np.float32), near_one, special])
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
        if dtype == np.float64:  # one step beside a half in float64, which float32 would round to the half itself
            return np.concatenate([values, np.nextafter(values, np.inf), np.nextafter(values, -np.inf)])
    return values


def assert_same_values(found, wanted):
    """The same bits, but any NaN for a NaN."""
    assert found.dtype == wanted.dtype
    odd = np.isnan(found.astype(np.float32))
    np.testing.assert_array_equal(odd, np.isnan(wanted.astype(np.float32)))
    np.testing.assert_array_equal(bits(found)[~odd], bits(wanted)[~odd])


def cast(array, name, **attributes):
    return backend.run_node(
        helper.make_node("Cast", ["x"], ["y"], to=number(name), **attributes), [array], opset_version=25
    )[0]


def test_a_bundle_holds_every_type_that_the_import_carries_in_another():
    assert set(CARRIERS) == EXTENDED
    assert all(ELEMENT_BYTES[name] == numpy_type(name).itemsize for name in EXTENDED)


@pytest.mark.parametrize("name", sorted(CARRIERS))
def test_every_value_passes_through_a_model_unchanged(name):
    given = every(name)
    assert_same_values(transposed(name, given), given.T)


@pytest.mark.parametrize("name", sorted(BITS))
def test_bits_above_those_of_the_type_are_ignored_and_come_back_as_none(name):
    codes = np.arange(256, dtype=np.uint8)
    if name in ("int4", "int2", "float4_e2m1fn"):
        codes = codes.reshape(-1, 4)
    found = transposed(name, codes.reshape(-1, 4).view(numpy_type(name)))
    np.testing.assert_array_equal(found.view(np.uint8), codes.reshape(-1, 4).T & ((1 << BITS[name]) - 1))


def nearest(given, name):
    """The values of the type next to those given, of two equally near the even one: by the list of all its values."""
    kind = numpy_type(name)
    codes = np.arange(1 << (BITS.get(name, 8 * kind.itemsize) - 1)).astype(f"uint{8 * kind.itemsize}")
    with np.errstate(invalid="ignore"):
        amounts = codes.view(kind).astype(np.float64)
    amounts = amounts[np.isfinite(amounts)]
    above = np.clip(np.searchsorted(amounts, np.abs(given)), 1, len(amounts) - 1)
    middle = (amounts[above - 1] + amounts[above]) / 2
    down = (np.abs(given) < middle) | ((np.abs(given) == middle) & (above % 2 == 1))
    return np.copysign(amounts[np.where(down, above - 1, above)], given)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in sorted(CARRIERS) if "float" in name and "e8m0" not in name])
def test_floats_round_half_to_even_and_once(name, dtype):
    given = odd_floats(np.dtype(dtype))
    given = given[np.abs(given.astype(np.float64)) <= float(ml_dtypes.finfo(numpy_type(name)).max)]
    np.testing.assert_array_equal(cast(given, name).astype(np.float64), nearest(given.astype(np.float64), name))


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("name", [name for name in FLOAT8 if "e8m0" not in name])
def test_casts_to_float8_saturate_as_they_are_told(name, saturate):
    given = odd_floats(np.dtype(np.float32))
    with np.errstate(all="ignore"):
        wanted = numpy_helper.saturate_cast(given, numpy_type(name)) if saturate else given.astype(numpy_type(name))
    assert_same_values(cast(given, name, saturate=saturate), wanted)


def test_what_bfloat16_cannot_hold_becomes_infinite_and_nan_stays_nan():
    given = np.array([3.4e38, -3.4e38, 3.3895314e38, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    with np.errstate(over="ignore"):
        assert_same_values(cast(given, "bfloat16"), given.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("mode", "saturate", "wanted"),
    [  # of 0, 2**-130, 2**-127, 1.25 * 2**-127, 1, 1.25, 1.5, 1.75, 2**127, 1.75 * 2**127, infinity and NaN
        ("up", 1, [0, 0, 0, 1, 127, 128, 128, 128, 254, 254, 254, 255]),
        ("down", 1, [0, 0, 0, 0, 127, 127, 127, 127, 254, 254, 254, 255]),
        ("nearest", 0, [255, 255, 0, 0, 127, 127, 128, 128, 254, 255, 255, 255]),
    ],
)
def test_powers_of_two_round_and_saturate_as_they_are_told(mode, saturate, wanted):
    amounts = [0, 2**-130, 2**-127, 1.25 * 2**-127, 1, 1.25, 1.5, 1.75, 2.0**127, 1.75 * 2.0**127, np.inf, np.nan]
    given = np.array(amounts, np.float32)
    found = cast(given, "float8_e8m0fnu", round_mode=mode, saturate=saturate)
    np.testing.assert_array_equal(found.view(np.uint8), wanted)


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Div", "Sub"])
def test_arithmetic_on_bfloat16_is_rounded_after_each_operator(op_type):
    drawn = np.random.default_rng(7)
    x, y = (drawn.normal(size=(7, 13)).astype(ml_dtypes.bfloat16) for _ in range(2))
    nodes = [helper.make_node(op_type, ["x", "y"], ["s"]), helper.make_node(op_type, ["s", "y"], ["z"])]
    kind = TensorProto.BFLOAT16
    entries = [value(name, x.shape, kind) for name in "xyz"]
    (found,) = backend.run_model(model(nodes, entries[:2], entries[2:], opset=18), [x, y])
    step = {"Add": np.add, "Mul": np.multiply, "Div": np.divide, "Sub": np.subtract}[op_type]
    assert_same_values(found, step(step(x, y), y))


def test_constants_of_narrow_types_are_weights_like_others():
    weight = np.arange(-8, 8).astype(ml_dtypes.int4).reshape(4, 4)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    graph = model(nodes, [value("x", (3, 4))], [value("y", (3, 4))], {"w": weight}, opset=21)
    x = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    (found,) = backend.run_model(graph, [x])
    np.testing.assert_allclose(found, x @ weight.astype(np.float32), rtol=1e-5)
