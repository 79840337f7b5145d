"""exp, log, tanh, sigmoid, erf and small powers: within their stated bounds, and vector code."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from kernels import compile_function, lower_expression, plan_kernel, run_lowered, runnable_targets
from tvm import relax

from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
SMALLEST_NORMAL = 2.0**-126


def power(exponent):
    return lambda x: relax.op.power(x, relax.const(exponent, x.ty.dtype))


OPERATORS = {
    "exp": relax.op.exp,
    "log": relax.op.log,
    "tanh": relax.op.tanh,
    "sigmoid": relax.op.sigmoid,
    "erf": relax.op.erf,
    "rsqrt": relax.op.rsqrt,
    "square": power(2.0),
    "cube": power(3.0),
    "fourth": power(4.0),
    "three_quarters": power(0.75),
}
EXACT = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "fourth": lambda x: x**4,
    "three_quarters": lambda x: x**0.75,
}
# Of the docstring of vector_math, in units in the last place: with fused multiply-add and without.
BOUNDS = {
    "exp": (2, 2),
    "log": (2, 2),
    "tanh": (5, 6),
    "sigmoid": (3, 3),
    "erf": (6, 7),
    "rsqrt": (1.5, 1.5),
    "square": (0.5, 0.5),
    "cube": (2, 2),
    "fourth": (2, 2),
    "three_quarters": (2.5, 2.5),
}


def targets():
    """Those that run here, and the x86-64 that has neither fused multiply-add nor AVX."""
    return {target.cpu: target for target in [*runnable_targets(), parse_preset("x86:x86-64-v2")]}


def compute(operator, target, x):
    (output,) = run_lowered(lower_expression(operator, [(x.shape, str(x.dtype))], target), target, [x])
    return output


def every_kind_of_float(count):
    """Every 2**32/count-th bit pattern, and as many evenly spread where the functions bend."""
    patterns = np.arange(0, 2**32, 2**32 // count, dtype=np.uint64) + 1021 * np.arange(count, dtype=np.uint64) % 4096
    everywhere = (patterns % 2**32).astype(np.uint32).view(np.float32)
    bends = np.linspace(-110, 110, count // 2), np.linspace(-10, 10, count // 4), np.linspace(0, 3, count // 4)
    return np.concatenate([everywhere, *(part.astype(np.float32) for part in bends)])


@pytest.mark.parametrize("cpu", targets())
@pytest.mark.parametrize("name", OPERATORS)
def test_every_function_keeps_its_bound_over_all_floats(name, cpu):
    target = targets()[cpu]
    x = every_kind_of_float(2**17 if name == "erf" else 2**21)
    got = compute(OPERATORS[name], target, x)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        step = np.spacing(np.maximum(np.abs(rounded), np.float32(SMALLEST_NORMAL))).astype(np.float64)
        error = np.abs(got - exact) / step
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    finite = np.isfinite(rounded)
    assert np.array_equal(got[~finite & ~np.isnan(exact)], rounded[~finite & ~np.isnan(exact)])
    normal = finite & (np.abs(exact) >= SMALLEST_NORMAL)
    fused = target.machine == "aarch64" or "fma" in target.cpu_features
    assert error[normal].max() <= BOUNDS[name][0 if fused else 1] + 0.01
    tiny = finite & ~normal
    assert np.abs(got[tiny] - exact[tiny]).max(initial=0) <= SMALLEST_NORMAL


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("exp", {0: 1, math.inf: math.inf, -math.inf: 0, 89: math.inf, -104: 0, 88.72283: 3.4027977e38}),
        ("log", {0: -math.inf, 1: 0, -1: math.nan, math.inf: math.inf, -math.inf: math.nan}),
        ("tanh", {0: 0, math.inf: 1, -math.inf: -1, 20: 1, -20: -1, 1e-30: 1e-30, -1e-40: -1e-40, 3e38: 1}),
        ("sigmoid", {0: 0.5, math.inf: 1, -math.inf: 0, 100: 1, -100: 0, 3e38: 1, -3e38: 0}),
        ("erf", {0: 0, math.inf: 1, -math.inf: -1, 5: 1, -5: -1, 1e-30: 1e-30 * 2 / math.sqrt(math.pi), -3e38: -1}),
        ("cube", {-2: -8, math.inf: math.inf, -math.inf: -math.inf}),
    ],
)
def test_infinities_zeros_and_nan_come_out_as_mathematics_says(name, values):
    x = np.array([*values, math.nan], np.float32)
    got = compute(OPERATORS[name], NATIVE, np.tile(x, 16))
    expected = np.tile(np.array([*values.values(), math.nan], np.float32), 16)
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions_are_odd_and_stay_within_one(name):
    x = np.linspace(0, 12, 2**18).astype(np.float32)
    up, down = compute(OPERATORS[name], NATIVE, x), compute(OPERATORS[name], NATIVE, -x)
    assert np.array_equal(up, -down)
    assert up.max() == 1


@pytest.mark.parametrize("name", OPERATORS)
def test_float16_is_computed_in_float32(name):
    x = np.random.default_rng(0).normal(scale=2, size=(37, 64)).astype(np.float16)
    x = np.abs(x) if name in ("log", "rsqrt", "three_quarters") else x
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64)).astype(np.float16)
    got = compute(OPERATORS[name], NATIVE, x)
    assert got.dtype == np.float16
    assert np.all(np.abs(got.astype(float) - exact) <= np.spacing(np.abs(exact)))


def test_float64_keeps_its_precision():
    x = np.random.default_rng(0).normal(size=(5, 16))
    np.testing.assert_allclose(compute(relax.op.exp, NATIVE, x), np.exp(x), rtol=1e-15)


def test_a_power_that_is_no_small_integer_is_left_to_libm():
    x = np.random.default_rng(0).uniform(0.1, 9, size=(7, 16)).astype(np.float32)
    np.testing.assert_allclose(compute(power(2.7), NATIVE, x), x.astype(float) ** 2.7, rtol=1e-6)
    np.testing.assert_allclose(compute(power(0.5), NATIVE, x), np.sqrt(x), rtol=1e-6)


SCALAR_FLOAT = re.compile(
    r"^\s+(?:v?(?:add|sub|mul|div|max|min|sqrt|fn?m(?:add|sub)\w*)ss\b|f(?:add|sub|mul|div|n?m(?:add|sub)|sqrt|m(?:ax|in))\w*\s+s\d)"
)
LIBM = re.compile(r"\b(?:exp|log|tanh|erf|pow)f\b")


@pytest.mark.parametrize("preset", ["x86:x86-64-v3", "x86:x86-64-v4", "arm:cortex-a72"])
@pytest.mark.parametrize("name", [*OPERATORS, "sqrt", "root", "gelu", "mish"])
def test_every_function_becomes_vector_code(name, preset):
    more = {
        "sqrt": relax.op.sqrt,
        "root": power(0.5),
        "gelu": relax.op.nn.gelu,
        "mish": lambda x: relax.op.multiply(x, relax.op.tanh(relax.op.nn.softplus(x))),
    }
    target = parse_preset(preset)
    (kernel,) = lower_expression({**OPERATORS, **more}[name], [((64, 1024), "float32")], target).kernels
    assembly = compile_function(plan_kernel(kernel, target, None).scheduled.function, target).inspect_source("asm")
    assert LIBM.search(assembly) is None
    assert [line for line in assembly.splitlines() if SCALAR_FLOAT.match(line)] == []
    divisions = len(re.findall(r"^\s+(?:vdivps|fdiv\s+v)", assembly, re.MULTILINE))
    assert (divisions > 0) == (name in {"tanh", "sigmoid", "erf", "rsqrt", "gelu", "mish"})


def test_functions_of_functions_are_computed_and_do_not_grow_without_end():
    def chain(x):
        for operator in (relax.op.sigmoid, relax.op.exp, relax.op.erf, relax.op.exp, relax.op.sigmoid, relax.op.exp):
            x = operator(x)
        return x

    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    expected = x.astype(np.float64)
    for name in ("sigmoid", "exp", "erf", "exp", "sigmoid", "exp"):
        expected = EXACT[name](expected)
    np.testing.assert_allclose(compute(chain, NATIVE, x), expected, rtol=2e-6)


def test_a_function_of_a_number_is_computed():
    """As of the border that a pad brings, in a branch that is chosen."""

    def build(x, chosen):
        padded = relax.op.nn.pad(x, [0, 0, 2, 1])
        return relax.op.where(chosen, relax.op.abs(padded), relax.op.tanh(relax.op.sigmoid(padded)))

    x = np.array([[0.5]], np.float32)
    lowered = lower_expression(build, [((1, 1), "float32"), ((), "bool")], NATIVE)
    (found,) = run_lowered(lowered, NATIVE, [x, np.array(False)])
    np.testing.assert_allclose(found, np.tanh(1 / (1 + np.exp(-np.pad(x, [(0, 0), (2, 1)])))), rtol=1e-6)
    assert len(lowered.kernels) == 1


def test_a_function_of_truths_is_computed():
    x, y = (np.random.default_rng(seed).integers(0, 3, 67).astype("float32") for seed in (0, 1))
    lowered = lower_expression(
        lambda x, y: relax.op.exp(relax.op.astype(relax.op.less(x, y), "float32")), [((67,), "float32")] * 2, NATIVE
    )
    np.testing.assert_allclose(run_lowered(lowered, NATIVE, [x, y])[0], np.exp((x < y).astype("float32")), rtol=1e-6)
    assert len(lowered.kernels) == 1


@pytest.mark.parametrize("target", targets().values(), ids=list(targets()))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_are_rounded_half_to_even(target, dtype):
    x = np.concatenate([np.arange(-40, 41) / 4, [np.nan, np.inf, -np.inf, 0.49999997, 2**23 + 1, -1e30]])
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    np.testing.assert_array_equal(compute(relax.op.round, target, x), np.rint(x))


def test_a_sigmoid_between_two_roundings_is_compiled():
    x = np.random.default_rng(0).normal(size=(3, 37)).astype("float32") * 5

    def between(x):
        return relax.op.round(relax.op.multiply(relax.op.sigmoid(relax.op.round(x)), relax.const(100.0)))

    np.testing.assert_allclose(compute(between, NATIVE, x), np.rint(100 / (1 + np.exp(-np.rint(x)))), atol=1)
