"""Arithmetic and activations element by element, where infinities, NaN, zeros and lost digits tell rules apart."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from against_reference import assert_node
from onnx import TensorProto, helper
from onnx_models import BOOL, model, one_node, value

import tvmbridge.backend as backend

pytestmark = pytest.mark.compiler

FLOATS = [np.float16, np.float32, np.float64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e-3, 30.0, -30.0, np.inf, -np.inf, np.nan]
NAN, INF = np.nan, np.inf


def run(op_type, *arrays, opset=25, **attributes):
    names = [f"x{position}" for position in range(len(arrays))]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    return backend.run_node(node, list(arrays), opset_version=opset)[0]


def pairs(dtype):
    """Every pair of special values and ragged random ones."""
    drawn = np.random.default_rng(4).normal(size=(2, 37)) * 20
    specials = np.array(list(itertools.product(SPECIAL, SPECIAL))).T
    return np.concatenate([specials, drawn], axis=1).astype(dtype)


def assert_identical(found, wanted):
    """The same values, NaN in the same places, and the same signs of zeros."""
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    signed = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found)[signed], np.signbit(wanted)[signed])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_floored_rest_has_the_divisors_sign_and_nan_only_where_there_is_none(dtype):
    x, y = pairs(dtype)
    with np.errstate(all="ignore"):
        assert_identical(run("Mod", x, y, opset=28), np.mod(x, y))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_truncated_rest_has_the_dividends_sign(dtype):
    x, y = pairs(dtype)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(run("Mod", x, y, fmod=1, opset=28), np.fmod(x, y))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16])
@pytest.mark.parametrize("fmod", [0, 1])
def test_rests_of_integers_are_those_of_numpy_and_none_traps(dtype, fmod):
    limits = np.iinfo(dtype)
    values = np.array(
        [limits.min, limits.max, 7, 100, 0, limits.max // 3, *([-7, -1] if limits.min else [3, 1])], dtype
    )
    x, y = (np.array(side, dtype) for side in zip(*itertools.product(values, values), strict=True))
    with np.errstate(all="ignore"):
        wanted = np.fmod(x, y) if fmod else np.mod(x, y)
    np.testing.assert_array_equal(run("Mod", x, y, fmod=fmod), wanted)


BASES = {
    "int32": [-3, -2, -1, 0, 1, 2, 3, 7],
    "int64": [-3, -2, -1, 0, 1, 2, 3, 7],
    "float32": [-2.0, -1, 0, 0.5, 1, 3],
}


@pytest.mark.parametrize("exponent", ["int8", "uint8", "int32", "int64", "uint32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("base", sorted(BASES))
def test_powers_take_exponents_of_any_type(base, exponent):
    x = np.array(BASES[base], base).reshape(-1, 1)
    y = np.array([0, 1, 2, 3, 9], exponent)
    np.testing.assert_array_equal(run("Pow", x, y), np.power(x, y.astype(np.int64)).astype(base))


@pytest.mark.parametrize("exponent", [2, 3, 4])
def test_a_small_known_power_of_floats_is_right_and_says_nothing(capfd, exponent):
    x = np.array([-3.5, 0, -0.0, 1e-20, 1e30, np.inf, -np.inf, np.nan, 0.7], np.float32)
    graph = one_node("Pow", np.array([exponent], np.float32), shape=(9,))
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_allclose(backend.run_model(graph, [x])[0], x ** np.float32(exponent), rtol=1e-6)
    assert "Warning" not in capfd.readouterr().err


@pytest.mark.parametrize("exponent", [0, 1, 2, 13, 39])
def test_a_known_power_of_integers_is_exact_to_the_last_bit(exponent):
    x = np.array([-3, 3, 1, -1, 2, 0], np.int64)
    graph = one_node("Pow", np.array([[exponent]]), shape=(6,), dtype=TensorProto.INT64)
    np.testing.assert_array_equal(backend.run_model(graph, [x])[0], [x**exponent])


def test_a_number_to_a_known_power_stays_a_number():
    for dtype, exponent in ((TensorProto.DOUBLE, np.int64(2)), (TensorProto.FLOAT, np.float32(3))):
        graph = one_node("Pow", np.array(exponent), shape=(), dtype=dtype)
        x = np.array(1.5, helper.tensor_dtype_to_np_dtype(dtype))
        (result,) = backend.run_model(graph, [x])
        assert result.shape == ()
        assert result == x**exponent


def test_an_odd_exponent_beyond_float32_stays_odd():
    exponents = np.array([2**24 + 1, 2**24, -(2**30) - 1], np.int64)
    np.testing.assert_array_equal(run("Pow", np.full(3, -1, np.float32), exponents), [-1, 1, -1])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint16, np.uint64])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts_by_the_width_or_by_less_than_nothing_leave_the_sign_alone(dtype, direction):
    width, limits = 8 * np.dtype(dtype).itemsize, np.iinfo(dtype)
    values = [limits.min, limits.max, 1, 100, *([-1, -100] if limits.min else [3, 2])]
    shifts = [0, 1, width - 1, width, width + 1, *([-1] if limits.min else [200])]
    x, y = (np.array(side, object) for side in zip(*itertools.product(values, shifts), strict=True))
    wanted = []
    for number, shift in zip(x.tolist(), y.tolist(), strict=True):
        by = shift if 0 <= shift < width else width
        bits = (int(number) << by) if direction == "LEFT" else (int(number) >> by)
        wanted.append(bits % 2**width)
    found = run("BitShift", x.astype(dtype), y.astype(dtype), opset=28, direction=direction)
    np.testing.assert_array_equal(found, np.array(wanted, f"uint{width}").view(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, ml_dtypes.bfloat16, np.int8, np.int64, np.uint8, np.uint64])
def test_the_sign_of_nan_is_nan_and_of_no_number_more_than_one(dtype):
    values = SPECIAL if np.dtype(dtype).kind not in "iu" else [0, 1, 77, np.iinfo(dtype).max, np.iinfo(dtype).min]
    x = np.array(values, object).astype(dtype)
    np.testing.assert_array_equal(run("Sign", x).astype("f8"), np.sign(x.astype("f8")))


@pytest.mark.parametrize(("positive", "negative"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_infinities_are_found_by_their_signs(positive, negative):
    x = np.array(SPECIAL, np.float32)
    found = run("IsInf", x, detect_positive=positive, detect_negative=negative)
    np.testing.assert_array_equal(found, ((x == INF) & bool(positive)) | ((x == -INF) & bool(negative)))


@pytest.mark.parametrize("op_type", ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
def test_what_denies_a_comparison_is_true_of_nan(op_type):
    nodes = [helper.make_node(op_type, ["x", "z"], ["c"]), helper.make_node("Not", ["c"], ["y"])]
    x, z = np.array([1, NAN, 3, NAN, INF], "f4"), np.array([1, 2, NAN, NAN, 2], "f4")
    graph = model(nodes, [value("x", (5,)), value("z", (5,))], [value("y", (5,), BOOL)])
    compare = {"Equal": np.equal, "Less": np.less, "Greater": np.greater}
    compare |= {"LessOrEqual": np.less_equal, "GreaterOrEqual": np.greater_equal}
    np.testing.assert_array_equal(backend.run_model(graph, [x, z])[0], ~compare[op_type](x, z))


def test_booleans_are_compared():
    x, y = np.array([[True, False, True, False], [True, True, False, False]])
    np.testing.assert_array_equal(run("Equal", x, y), x == y)


@pytest.mark.parametrize("op_type", ["Equal", "LessOrEqual", "GreaterOrEqual"])
def test_nan_does_not_equal_itself(op_type):
    graph = model([helper.make_node(op_type, ["x", "x"], ["y"])], [value("x", (3,))], [value("y", (3,), BOOL)])
    (found,) = backend.run_model(graph, [np.array([1, NAN, INF], np.float32)])
    np.testing.assert_array_equal(found, [True, False, True])


def test_an_artanh_that_is_repeated_is_compiled():
    nodes = [helper.make_node("Atanh", ["x"], ["a"]), helper.make_node("Tile", ["a", "repeats"], ["y"])]
    graph = model(nodes, [value("x", (1,))], [value("y", (2,))], {"repeats": np.array([2], np.int64)})
    (found,) = backend.run_model(graph, [np.array([0.25], np.float32)])
    np.testing.assert_allclose(found, np.full(2, np.arctanh(0.25)), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_artanh_near_zero_keeps_its_digits(dtype):
    limit = np.finfo(dtype)
    drawn = np.random.default_rng(1).uniform(-1, 1, 41)
    x = np.concatenate([drawn, drawn * 1e-3, drawn * float(limit.tiny) * 8, [0, 1, -1, 2, NAN]]).astype(dtype)
    with np.errstate(all="ignore"):
        wanted = np.arctanh(x.astype(np.longdouble)).astype(dtype)
    np.testing.assert_allclose(run("Atanh", x), wanted, rtol=16 * limit.eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op_type", ["Softplus", "Mish"])
def test_activations_far_below_zero_keep_their_digits(op_type, dtype):
    lowest = -9 if dtype == np.float16 else -80
    x = np.concatenate([np.linspace(lowest, 100, 211), [INF, NAN]]).astype(dtype)
    wide = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        softplus = np.logaddexp(wide, 0)
        wanted = (softplus if op_type == "Softplus" else wide * np.tanh(softplus)).astype(dtype)
    found = run(op_type, x, opset=22)
    assert found.dtype == dtype
    tolerance = {np.float16: 2e-3, np.float32: 2e-5, np.float64: 2e-11}[dtype]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("dtype", [*FLOATS, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("Celu", {"alpha": 2.0}), ("Celu", {}), ("Elu", {"alpha": 0.5}), ("Selu", {}), ("Selu", {"gamma": 2.0})],
)
def test_exponential_activations_keep_what_float16_holds(op_type, attributes, dtype):
    x = np.array([*SPECIAL, -0.004, 0.004, -1e-4, 5, -5]).astype(dtype)
    found = run(op_type, x, opset=28 if op_type == "Celu" else 22, **attributes)
    alpha = attributes.get("alpha", 1.0 if op_type != "Selu" else 1.67326319217681884765625)
    gamma = attributes.get("gamma", 1.05070102214813232421875 if op_type == "Selu" else 1)
    wide = x.astype(np.float64)
    below = alpha * np.expm1(np.minimum(wide, 0) / (alpha if op_type == "Celu" else 1))
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3}.get(np.dtype(dtype).name, 1e-4)
    wanted = gamma * np.where(wide < 0, below, wide)
    np.testing.assert_allclose(found.astype("f8"), wanted, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 7)])
def test_slopes_of_an_old_prelu_lie_along_its_channels(shape):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    slopes = np.array([0.1, 0.2, 0.3], np.float32)
    along = slopes.reshape(3, *(1 for _ in shape[2:]))
    np.testing.assert_allclose(run("PRelu", x, slopes, opset=6), np.where(x < 0, x * along, x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, np.float64])
def test_limits_of_the_run_clip_and_the_upper_one_wins(dtype):
    x = np.arange(23).astype(dtype).reshape(1, 23)
    low, high = np.array(5, dtype), np.array(17, dtype)
    assert_node("Clip", [x, low, high], expected=[np.clip(x, low, high)])
    assert_node("Clip", [x, high, low], expected=[np.full_like(x, 5)])
    assert_node("Clip", [x, None, high], expected=[np.minimum(x, high)])


def test_infinities_of_bfloat16_are_clipped_to_its_largest_number():
    x = np.array([INF, -INF, 1], ml_dtypes.bfloat16)
    limit = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    np.testing.assert_array_equal(run("Clip", x).astype("f8"), [limit, -limit, 1])
