"""Values that are float16 widened are found, and stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi
from kernels import lower_expression, lower_function, random_array
from tvm import relax, te, tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules.half_values import as_half, half_factors, without_round_trips
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

F16, F32 = "float16", "float32"
GPU = parse_preset("cuda:sm_80,float16")


def convolution_with_border() -> Kernel:
    weight = relax.const(random_array(np.random.default_rng(0), (3, 3, 16, 32), F32), F32)
    layouts = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
    lowered = lower_expression(
        lambda x: relax.op.nn.conv2d(x, weight, padding=1, **layouts), [((1, 8, 8, 16), F32)], GPU
    )
    return next(kernel for kernel in lowered.kernels if "conv2d" in kernel.name)


def test_the_border_of_a_convolution_is_float16_like_what_it_surrounds() -> None:
    assert half_factors(convolution_with_border().function) == {"pad_temp", "whole1"}


def test_what_a_kernel_computes_before_it_multiplies_stays_float32() -> None:
    x, y = (te.placeholder((16, 16), F16, name) for name in "xy")
    doubled = te.compute((16, 16), lambda i, j: x[i, j].astype(F32) * 2.0, "doubled")
    whole = te.compute((16, 16), lambda i, j: y[i, j].astype(F32), "whole")
    k = te.reduce_axis((0, 16), "k")
    product = te.compute((16, 16), lambda i, j: te.sum(doubled[i, k] * whole[k, j], k), "product")
    assert half_factors(lower_function(te.create_prim_func([x, y, product])).function) == {"whole"}


@pytest.mark.parametrize(("number", "half"), [(0.0, True), (-65504.0, True), (0.1, False), (65520.0, False)])
def test_a_number_is_float16_if_that_has_it(number: float, half: bool) -> None:
    value = as_half(tirx.FloatImm(F32, number))
    assert (value is not None) == half
    if value is not None:
        assert str(value.ty.dtype) == F16 and float(value.value) == number


def test_a_cast_there_and_back_is_none() -> None:
    x = te.placeholder((16,), F16, "x")

    def value(i: tirx.Var) -> tirx.PrimExpr:
        return tirx.if_then_else(i < 7, x[i].astype(F32), tirx.const(0.0, F32)).astype(F16)

    function = without_round_trips(te.create_prim_func([x, te.compute((16,), value, "y")]))
    casts: list[tirx.Cast] = []
    tvm_ffi.structural_walk(function, (tirx.Cast, casts.append))
    assert casts == []
