"""Sliding windows agree with NumPy over ragged shapes, in every config and for every target that runs here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import guess, lower_expression, random_array, run_lowered, runnable_targets
from tvm import relax

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Template
from tvmbridge.schedules.cpu.window import TEMPLATE
from tvmbridge.targets import Target

pytestmark = pytest.mark.compiler

op = relax.op
RUNNABLE = runnable_targets()
NATIVE = RUNNABLE[0]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2}
CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17, 24, 31, 32, 48, 64, 83])


def patches(
    x: np.ndarray, window: Sequence[int], strides: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    """x (batch, *places, channels) → (batch, *places, channels, *window); what is padding is NaN."""
    axes = tuple(range(1, 1 + len(window)))
    before, behind = padding[: len(window)], padding[len(window) :]
    x = np.pad(x.astype("float64"), [(0, 0), *zip(before, behind, strict=True), (0, 0)], constant_values=np.nan)
    reach = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    stepped = (slice(None, None, s) for s in strides)
    dilated = (slice(None, None, d) for d in dilation)
    return view[(slice(None), *stepped, slice(None), *dilated)]


def draw_geometry(data: st.DataObject, rank: int) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """(places, window, strides, padding, dilation) whose output is not empty; padding is first before, then behind."""
    window = [data.draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank)]
    dilation = [data.draw(st.sampled_from([1, 1, 2])) for _ in range(rank)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    padding = [data.draw(st.integers(0, k)) for k in window * 2]
    places = []
    for i in range(rank):
        least = dilation[i] * (window[i] - 1) + 1 - padding[i] - padding[i + rank]
        wanted = data.draw(st.sampled_from([1, 2, 3, 5, 7, 11, 14, 19] if rank < 3 else [1, 3, 5, 7]))
        places.append(max(wanted, least))
    return places, window, strides, padding, dilation


class Drawn:
    """For each kernel that slides a window the template of windows with any of its configs; counts them."""

    def __init__(self, data: st.DataObject, target: Target) -> None:
        self.data, self.target, self.count = data, target, 0

    def __call__(self, kernel: Kernel) -> tuple[Template, Config]:
        if not TEMPLATE.fits(kernel, self.target):
            return guess(kernel, self.target)
        self.count += 1
        return TEMPLATE, self.data.draw(st.sampled_from(TEMPLATE.configs(kernel, self.target)))


def assert_close(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    assert ours.shape == reference.shape
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    np.testing.assert_allclose(ours.astype("float64"), reference, rtol=0, atol=tolerance * scale)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_depthwise_convolution_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from(["float32", "float32", "float64", "float16"]))
    places, window, strides, padding, dilation = draw_geometry(data, 2)
    batch, channels = data.draw(st.sampled_from([1, 1, 3])), data.draw(CHANNELS)
    multiplier = 1 if channels == 1 else data.draw(st.sampled_from([1, 1, 1, 2, 3]))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, (batch, *places, channels), dtype)
    w = random_array(generator, (*window, 1, channels * multiplier), dtype)
    bias = random_array(generator, (channels * multiplier,), dtype)
    tail = data.draw(st.sampled_from(["nothing", "bias", "clip", "residual", "silu", "cast"]))
    seen = patches(np.repeat(x, multiplier, 3), window, strides, padding, dilation)
    reference = np.nansum(seen * np.moveaxis(w.astype("float64"), (0, 1), (2, 3))[0], (-2, -1))
    other = random_array(generator, reference.shape, dtype)

    def build(x: relax.Expr, other: relax.Expr) -> relax.Expr:
        y = op.nn.conv2d(x, relax.const(w, dtype), strides, padding, dilation, channels, "NHWC", "HWIO")
        if tail in ("bias", "clip"):
            y = op.add(y, relax.const(bias, dtype))
        if tail == "silu":
            y = op.multiply(y, op.sigmoid(y))
        if tail == "residual":
            y = op.add(op.nn.relu(y), other)
        return op.clip(y, 0, 2) if tail == "clip" else op.astype(y, "float64") if tail == "cast" else y

    if tail in ("bias", "clip"):
        reference = reference + bias.astype("float64")
    if tail == "silu":
        reference = reference / (1 + np.exp(-reference))
    if tail == "residual":
        reference = np.maximum(reference, 0) + other.astype("float64")
    if tail == "clip":
        reference = reference.clip(0, 2)
    lowered = lower_expression(build, [(x.shape, dtype), (other.shape, dtype)], target)
    choose = Drawn(data, target)
    (output,) = run_lowered(lowered, target, [x, other], choose)
    if channels > 1:
        assert choose.count == 1
    assert_close(output, reference, TOLERANCE[dtype])


POOLS = {
    1: (op.nn.max_pool1d, op.nn.avg_pool1d, "NWC"),
    2: (op.nn.max_pool2d, op.nn.avg_pool2d, "NHWC"),
    3: (op.nn.max_pool3d, op.nn.avg_pool3d, "NDHWC"),
}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_pooling_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    rank = data.draw(st.sampled_from([1, 2, 2, 2, 3]))
    kind = data.draw(st.sampled_from(["max", "average", "average of all"]))
    floats = ["float32", "float32", "float64", "float16"]
    dtype = data.draw(st.sampled_from(floats + (["int8", "uint8", "int32"] if kind == "max" else [])))
    places, window, strides, padding, dilation = draw_geometry(data, rank)
    channels = data.draw(CHANNELS)
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, (data.draw(st.sampled_from([1, 2])), *places, channels), dtype)
    maximum, average, layout = POOLS[rank]

    def build(x: relax.Expr) -> relax.Expr:
        geometry = {"strides": strides, "padding": padding, "dilation": dilation, "layout": layout}
        if kind == "max":
            return maximum(x, window, **geometry)
        return average(x, window, count_include_pad=kind == "average of all", **geometry)

    seen = patches(x, window, strides, padding, dilation)
    taps = tuple(range(-rank, 0))
    if kind == "max":
        lowest = float(np.finfo(dtype).min if dtype.startswith("float") else np.iinfo(dtype).min)
        reference = np.nan_to_num(seen, nan=lowest).max(taps)
    else:
        count = (~np.isnan(seen)).sum(taps).clip(1) if kind == "average" else math.prod(window)
        reference = np.nansum(seen, taps) / count
    lowered = lower_expression(build, [(x.shape, dtype)], target)
    choose = Drawn(data, target)
    (output,) = run_lowered(lowered, target, [x], choose)
    assert choose.count == 1
    if kind == "max":
        assert np.array_equal(output.astype("float64"), reference)
    else:
        assert_close(output, reference, TOLERANCE[dtype])
