"""Sliding windows agree with NumPy over ragged shapes, in every config and for every target that runs here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    Build,
    compile_function,
    guess,
    lower_expression,
    lower_function,
    random_array,
    run_drawn,
    run_function,
    run_lowered,
    runnable_targets,
)
from tvm import relax, te

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.schedules.cpu.window import TEMPLATE
from tvmbridge.targets import Target, parse_preset

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


def run_windows(
    data: st.DataObject, build: Build, arrays: Sequence[np.ndarray], target: Target
) -> tuple[np.ndarray, int]:
    """The output for drawn configs of the template of windows; how many kernels slide one."""
    lowered = lower_expression(build, [(x.shape, str(x.dtype)) for x in arrays], target)
    output, choice = run_drawn(data, lowered, target, arrays, TEMPLATE)
    return output, len(choice.taken)


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
    output, windows = run_windows(data, build, [x, other], target)
    assert windows == 1 or channels == 1
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
    output, windows = run_windows(data, build, [x], target)
    assert windows == 1
    if kind == "max":
        assert np.array_equal(output.astype("float64"), reference)
    else:
        assert_close(output, reference, TOLERANCE[dtype])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_window_along_the_contiguous_axis_agrees_with_numpy_in_every_config(data: st.DataObject) -> None:
    """Channels first, the last axis by steps of one: a convolution of sequences, or pooling of images."""
    target = data.draw(st.sampled_from(RUNNABLE))
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    kind = data.draw(st.sampled_from(["convolution", "max", "average"]))
    rank = 1 if kind == "convolution" else 2
    places, window, strides, padding, dilation = draw_geometry(data, rank)
    strides[-1] = 1
    places[-1] += data.draw(st.integers(2, 40))
    channels = data.draw(st.sampled_from([2, 3, 16, 19]))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, (2, channels, *places), dtype)
    w = random_array(generator, (channels, 1, *window), dtype)
    seen = patches(np.moveaxis(x, 1, -1), window, strides, padding, dilation)
    taps = tuple(range(-rank, 0))

    def build(x: relax.Expr) -> relax.Expr:
        if kind == "convolution":
            return op.nn.relu(op.nn.conv1d(x, relax.const(w, dtype), strides, padding, dilation, channels))
        pool = op.nn.max_pool2d if kind == "max" else op.nn.avg_pool2d
        return pool(x, window, strides, padding, dilation)

    if kind == "convolution":
        reference = np.nansum(seen * w.astype("float64")[:, 0], taps).clip(0)
    elif kind == "max":
        reference = np.nan_to_num(seen, nan=float(np.finfo(dtype).min)).max(taps)
    else:
        reference = np.nansum(seen, taps) / (~np.isnan(seen)).sum(taps).clip(1)
    output, windows = run_windows(data, build, [x], target)
    whole, border = places[-1] - dilation[-1] * (window[-1] - 1), sum(padding[rank - 1 :: rank])
    assert windows == 1 or whole < border or window[-1] == 1
    assert_close(output, np.moveaxis(reference, -1, 1), TOLERANCE[dtype])


def depthwise(
    places: int, channels: int, window: int = 3, stride: int = 1, dtype: str = "float32", target: Target = NATIVE
) -> Kernel:
    weight = random_array(np.random.default_rng(0), (window, window, 1, channels), dtype)

    def build(x: relax.Expr) -> relax.Expr:
        y = op.nn.conv2d(
            x, relax.const(weight, dtype), stride, window // 2, 1, channels, "NHWC", "HWIO", out_dtype="float32"
        )
        return op.clip(y, 0, 6)

    (kernel,) = lower_expression(build, [((1, places, places, channels), dtype)], target).kernels
    return kernel


def unfit(name: str) -> Kernel:
    """A kernel that slides no window of ours."""
    x, shape = te.placeholder((2, 9, 8, 16), name="x"), (2, 9, 8, 16)
    axis = te.reduce_axis((0, 3), name="axis")
    if name == "padding that counts":
        padded = te.compute((2, 11, 8, 16), lambda n, y, x_, c: tvm.tirx.if_then_else(y < 9, x[n, y, x_, c], 1.0))
        made = te.compute(shape, lambda n, y, x_, c: te.sum(padded[n, y + axis, x_, c], axis))
    elif name == "a window that leaps over channels":
        made = te.compute((2, 9, 8, 7), lambda n, y, x_, c: te.sum(x[n, y, x_, c * 2 + axis], axis))
    elif name == "mostly borders":
        inside = te.compute((2, 9, 8, 28), lambda n, y, x_, c: tvm.tirx.if_then_else(c < 16, x[n, y, x_, c], 0.0))
        wide = te.reduce_axis((0, 12), name="wide")
        made = te.compute((2, 9, 8, 16), lambda n, y, x_, c: te.sum(inside[n, y, x_, c + wide], wide))
    elif name == "a window that slides aslant":
        made = te.compute((2, 4, 3, 16), lambda n, y, x_, c: te.sum(x[n, y + x_ + axis, x_, c], axis))
    elif name == "two tensors that slide differently":
        made = te.compute((2, 7, 6, 16), lambda n, y, z, c: te.sum(x[n, y + axis, z, c] * x[n, y, z + axis, c], axis))
    elif name == "a product":
        product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tvm.tirx.const(1, dtype))
        made = te.compute((2, 7, 8, 16), lambda n, y, x_, c: product(x[n, y + axis, x_, c], axis))
    elif name == "a whole axis":
        made = te.compute((2, 8, 16), lambda n, x_, c: te.sum(x[n, axis, x_, c], axis))
    elif name == "a result that is repeated":
        summed = te.compute((2, 7, 8, 16), lambda n, y, x_, c: te.sum(x[n, y + axis, x_, c], axis))
        made = te.compute((2, 7, 8, 16, 2), lambda n, y, x_, c, _i: summed[n, y, x_, c] + 1.0)
    else:
        raise ValueError(name)
    return lower_function(te.create_prim_func([x, made]), "unfit")


@pytest.mark.parametrize(
    "name",
    [
        "padding that counts",
        "a window that leaps over channels",
        "mostly borders",
        "a window that slides aslant",
        "two tensors that slide differently",
        "a product",
        "a whole axis",
        "a result that is repeated",
    ],
)
def test_what_is_no_window_of_channels_is_left_to_others(name: str) -> None:
    kernel = unfit(name)
    assert not TEMPLATE.fits(kernel, NATIVE)
    assert TEMPLATE.configs(kernel, NATIVE) == []
    assert TEMPLATE not in fitting_templates(kernel, NATIVE)
    with pytest.raises(ValueError, match="slides no window"):
        TEMPLATE.schedule(kernel, NATIVE, {"positions": 1, "vectors": 1, "block": 1})


def test_a_dense_convolution_is_left_to_others() -> None:
    weight = relax.const(random_array(np.random.default_rng(0), (3, 3, 16, 16), "float32"))
    kernels = lower_expression(
        lambda x: op.nn.conv2d(x, weight, 1, 1, 1, 1, "NHWC", "HWIO"), [((1, 9, 8, 16), "float32")], NATIVE
    ).kernels
    assert [TEMPLATE.fits(kernel, NATIVE) for kernel in kernels] == [False] * len(kernels)


@pytest.mark.parametrize("target", [*RUNNABLE, parse_preset("arm:cortex-a72")], ids=lambda target: target.name)
def test_a_depthwise_kernel_is_vector_code_that_keeps_its_sums_in_registers(target: Target) -> None:
    kernel = depthwise(14, 96, target=target)
    function = TEMPLATE.schedule(kernel, target, TEMPLATE.guess(kernel, target)).function
    assembly = compile_function(function, target).inspect_source("s")
    assert "TVMBackendAllocWorkspace" not in assembly
    if target.machine == "aarch64":
        vector, scalar = r"\bfmla\s+v\d+\.4s", r"\bfmadd\s+s\d"
    else:
        register = "zmm" if target.vector_bits == 512 else "ymm"
        vector, scalar = rf"\bvfmadd\w+ps\s.*%{register}", r"\bvfmadd\w+ss\s"
    # Seven positions of nine taps, each of them once: nothing is computed twice for neighbouring windows.
    assert len(re.findall(vector, assembly)) >= 7 * 9
    assert re.findall(scalar, assembly) == []


def test_an_input_is_loaded_once_for_the_windows_that_overlap_it() -> None:
    """Eight positions of three taps at stride 1 touch ten inputs along the row: 30 in three rows, not 72."""
    kernel = depthwise(34, 16)
    config = {"positions": 8, "vectors": 1, "block": 1}
    target = parse_preset("x86:x86-64-v4")
    assembly = compile_function(TEMPLATE.schedule(kernel, target, config).function, target).inspect_source("s")
    multiplied = re.findall(r"vfmadd\w+ps\s+(\S+),", assembly)
    from_memory = [operand for operand in multiplied if "(" in operand]
    loaded = re.findall(r"vmov[au]ps\s+\S*\(\S*\), %zmm", assembly)
    assert len(multiplied) > 3 * 72  # the first, the middle and the last tile of a row
    assert len(from_memory) + len(loaded) < 0.75 * len(multiplied)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_tasks_cover_every_row_whatever_the_cores(cores: int) -> None:
    target = msgspec.structs.replace(NATIVE, cores=cores)
    kernel = depthwise(29, 83)
    x = random_array(np.random.default_rng(1), (1, 29, 29, 83), "float32")
    w = random_array(np.random.default_rng(0), (3, 3, 1, 83), "float32")
    seen = patches(x, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    reference = np.nansum(seen * np.moveaxis(w.astype("float64"), (0, 1), (2, 3))[0], (-2, -1)).clip(0, 6)
    for config in ({"positions": 5, "vectors": 2, "block": 2}, {"positions": 8, "vectors": 1, "block": 4}):
        function = TEMPLATE.schedule(kernel, target, config).function
        assert ("T.parallel" in function.script()) == (cores > 1)
        (output,) = run_function(function, target, [x, w])
        assert_close(output, reference, TOLERANCE["float32"])


def test_a_small_kernel_runs_in_one_thread() -> None:
    kernel = depthwise(7, 32)
    assert "T.parallel" not in TEMPLATE.schedule(kernel, NATIVE, TEMPLATE.guess(kernel, NATIVE)).function.script()


def test_wide_windows_loop_over_their_taps() -> None:
    """Written out they would be thousands of operations."""
    kernel = depthwise(9, 24, window=35)
    x = random_array(np.random.default_rng(1), (1, 9, 9, 24), "float32")
    w = random_array(np.random.default_rng(0), (35, 35, 1, 24), "float32")
    seen = patches(x, (35, 35), (1, 1), (17,) * 4, (1, 1))
    reference = np.nansum(seen * np.moveaxis(w.astype("float64"), (0, 1), (2, 3))[0], (-2, -1)).clip(0, 6)
    for config in TEMPLATE.configs(kernel, NATIVE):
        function = TEMPLATE.schedule(kernel, NATIVE, config).function
        assert len(function.script().splitlines()) < 2000
        (output,) = run_function(function, NATIVE, [x, w])
        assert_close(output, reference, TOLERANCE["float32"])


def test_positions_that_see_nothing_but_padding_are_written_too() -> None:
    generator = np.random.default_rng(0)
    x, w = random_array(generator, (1, 1, 5, 9), "float32"), random_array(generator, (1, 1, 3, 3), "float32")
    lowered = lower_expression(
        lambda x: op.nn.conv2d(x, relax.const(w), strides=3, padding=(3, 3, 3, 3)), [(x.shape, "float32")], NATIVE
    )
    view = patches(x.transpose(0, 2, 3, 1), (3, 3), (3, 3), (3, 3, 3, 3), (1, 1))
    expected = np.nansum(view * w[0, 0], axis=(-1, -2)).transpose(0, 3, 1, 2)

    def choose(kernel: Kernel) -> tuple[Template, Config]:
        if not TEMPLATE.fits(kernel, NATIVE):
            return guess(kernel, NATIVE)
        chosen.append(TEMPLATE.configs(kernel, NATIVE)[0])
        return TEMPLATE, chosen[-1]

    chosen: list[Config] = []
    (output,) = run_lowered(lowered, NATIVE, [x], choose)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert chosen
