"""Winograd's convolutions agree with float64 in every config, and are the untuned choice where they pay."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import (
    assert_close,
    compile_function,
    guess,
    lower_expression,
    plan,
    random_array,
    run_drawn,
    run_lowered,
    runnable_targets,
)
from test_contraction import TAILS, conv2d_reference, loop_bodies
from tvm import relax

from tvmbridge.codegen.assemble import assemble
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules import Packing, fitting_templates
from tvmbridge.schedules.cpu.winograd import TEMPLATE
from tvmbridge.schedules.cpu.winograd.transforms import TRANSFORMS, FilterTransform
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
RUNNABLE = runnable_targets()
NATIVE = RUNNABLE[0]
TILES = st.sampled_from(sorted(TRANSFORMS))
TOLERANCE = {2: 2e-6, 4: 1e-5}  # of the largest result, for some hundred channels


def constant(*shape: int, dtype: str = F32, seed: int = 0) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(seed), shape, dtype), dtype)


def convolution(lowered: LoweredModel) -> Kernel:
    (kernel,) = (kernel for kernel in lowered.kernels if "conv2d" in kernel.name)
    return kernel


def lower_conv(channels: int, outputs: int, size: int, dtype: str = F32, **attributes: object) -> LoweredModel:
    weight = constant(outputs, channels // int(attributes.get("groups", 1)), 3, 3, dtype=dtype)
    inputs = [((1, channels, size, size), dtype)]
    return lower_expression(lambda x: op.nn.conv2d(x, weight, **attributes), inputs, NATIVE)


@settings(deadline=None)
@given(TILES, st.integers(0, 1000))
def test_a_tile_transformed_multiplied_and_transformed_back_is_convolved(tile: int, seed: int) -> None:
    transform, generator = TRANSFORMS[tile], np.random.default_rng(seed)
    weight, image = generator.normal(size=(3, 3)), generator.normal(size=(transform.size, transform.size))
    transformed = FilterTransform(tile).apply(weight[:, :, None, None]).reshape(transform.size, transform.size)
    inputs = np.array(transform.input(np.array(transform.input(image)).T)).T
    outputs = np.array(transform.output(np.array(transform.output(transformed * inputs)).T)).T
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
    np.testing.assert_allclose(outputs, np.einsum("yxij,ij->yx", windows, weight), atol=1e-12)


@settings(deadline=None)
@given(TILES, st.integers(1, 20), st.integers(8, 20), st.sampled_from([1, 4, 8]))
def test_a_weight_is_transformed_in_float64_and_then_packed(tile: int, inputs: int, outputs: int, lanes: int) -> None:
    weight = random_array(np.random.default_rng(inputs), (3, 3, inputs, outputs), F32)
    transform = FilterTransform(tile)
    packing = Packing(0, lanes, transform=transform)
    packed = packing.pack(weight)
    assert packed.dtype == F32 and packed.flags.c_contiguous and packed.shape == packing.shape(weight.shape)
    exact = transform.apply(weight.astype("float64"))
    assert exact.shape == transform.shape(weight.shape) == (TRANSFORMS[tile].points, inputs, outputs)
    np.testing.assert_array_equal(packed, Packing(0, lanes).pack(exact.astype(F32)))


CHANNELS = st.sampled_from([16, 17, 19, 31, 32, 37, 48])
IMAGE = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13])


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_convolution_agrees_with_float64_in_every_config(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(RUNNABLE))
    batch, height, width = data.draw(st.sampled_from([1, 1, 2, 3])), data.draw(IMAGE), data.draw(IMAGE)
    channels, outputs = data.draw(CHANNELS), data.draw(CHANNELS)
    padding = [data.draw(st.sampled_from([0, 1, 1, 2])) for _ in range(4)]
    padding[0] += max(0, 3 - height - padding[0] - padding[2])
    padding[1] += max(0, 3 - width - padding[1] - padding[3])
    tail, tail_reference = TAILS[data.draw(st.sampled_from(sorted(TAILS)))]
    residual, relu_first = data.draw(st.booleans()), data.draw(st.booleans())
    mean = data.draw(st.sampled_from([0.0, 3.0]))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = random_array(generator, (batch, channels, height, width), F32) + np.float32(mean)
    w = random_array(generator, (outputs, channels, 3, 3), F32)
    bias = random_array(generator, (1, outputs, 1, 1), F32)
    image = np.maximum(x, 0) if relu_first else x
    reference = conv2d_reference(image, w, (1, 1), padding, (1, 1), 1)
    added = random_array(generator, reference.shape, F32)

    def build(x: relax.Expr, added: relax.Expr | None = None) -> relax.Expr:
        y = op.nn.conv2d(op.nn.relu(x) if relu_first else x, relax.const(w, F32), padding=padding)
        y = op.add(y, relax.const(bias, F32))
        return tail(y if added is None else op.add(y, added))

    arrays = [x, added] if residual else [x]
    lowered = lower_expression(build, [(array.shape, F32) for array in arrays], target)
    output, choice = run_drawn(data, lowered, target, arrays, TEMPLATE)
    assert [name for name in choice.taken if "conv2d" in name]
    assert_close(output, tail_reference(reference + bias + (added if residual else 0)), 2e-5)


@pytest.mark.parametrize("tile", sorted(TRANSFORMS))
@pytest.mark.parametrize("mean", [0.0, 1.0], ids=["around zero", "around one"])
def test_many_channels_stay_far_more_accurate_than_a_build_demands(tile: int, mean: float) -> None:
    lowered = lower_conv(256, 24, 14, padding=1)
    kernel = convolution(lowered)
    x = np.maximum(random_array(np.random.default_rng(1), (1, 256, 14, 14), F32) + np.float32(mean), 0)
    config = next(c for c in TEMPLATE.configs(kernel, NATIVE) if c["tile"] == tile)
    (output,) = run_lowered(lowered, NATIVE, [x], lambda k: (TEMPLATE, config) if k is kernel else guess(k, NATIVE))
    reference = conv2d_reference(x, constant(24, 256, 3, 3).value.numpy(), (1, 1), (1,) * 4, (1, 1), 1)
    assert_close(output, reference, TOLERANCE[tile])


def test_nothing_but_the_tiles_that_read_it_is_spoilt_by_a_nan() -> None:
    lowered = lower_conv(16, 16, 16, padding=1)
    kernel = convolution(lowered)
    x = random_array(np.random.default_rng(1), (1, 16, 16, 16), F32)
    x[0, 5, 9, 2] = np.nan
    config = next(c for c in TEMPLATE.configs(kernel, NATIVE) if c["tile"] == 4)
    (output,) = run_lowered(lowered, NATIVE, [x], lambda k: (TEMPLATE, config) if k is kernel else guess(k, NATIVE))
    spoilt = np.isnan(output).any(axis=(0, 1))
    assert spoilt[8:11, 1:4].all()  # as a direct convolution would have it
    assert not spoilt[:8].any() and not spoilt[12:].any() and not spoilt[:, 4:].any()


def fits(kernel: Kernel) -> bool:
    return TEMPLATE in fitting_templates(kernel, NATIVE)


REFUSED: dict[str, Callable[[], LoweredModel]] = {
    "a stride": lambda: lower_conv(32, 32, 9, strides=2),
    "a dilation": lambda: lower_conv(32, 32, 9, dilation=2),
    "groups": lambda: lower_conv(32, 32, 9, groups=2),
    "few inputs": lambda: lower_conv(3, 32, 9),
    "few outputs": lambda: lower_conv(32, 8, 9),
    "float64": lambda: lower_conv(32, 32, 9, dtype="float64"),
    "float16": lambda: lower_conv(32, 32, 9, dtype="float16"),
    "a window of 5": lambda: lower_expression(
        lambda x: op.nn.conv2d(x, constant(32, 32, 5, 5)), [((1, 32, 9, 9), F32)], NATIVE
    ),
    "a weight that is an input": lambda: lower_expression(
        op.nn.conv2d, [((1, 32, 9, 9), F32), ((32, 32, 3, 3), F32)], NATIVE
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_is_not_for_is_left_to_others(case: str) -> None:
    assert not fits(convolution(REFUSED[case]()))


def test_a_plain_one_is_taken() -> None:
    assert fits(convolution(lower_conv(32, 32, 9)))


@pytest.mark.parametrize(("size", "channels", "expected"), [(28, 64, "winograd"), (3, 512, "contraction")])
def test_an_untuned_build_takes_it_where_it_pays(size: int, channels: int, expected: str) -> None:
    kernel = convolution(lower_conv(channels, channels, size, padding=1))
    assert fits(kernel) and guess(kernel, NATIVE)[0].name == expected


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("shape", [(16, 16, 1), (64, 64, 28), (256, 512, 13)], ids=str)
def test_the_guess_is_one_of_few_configs(shape: tuple[int, int, int], cores: int) -> None:
    kernel = convolution(lower_conv(*shape, padding=1))
    target = msgspec.structs.replace(NATIVE, cores=cores)
    configs = TEMPLATE.configs(kernel, target)
    assert TEMPLATE.guess(kernel, target) in configs
    assert len(configs) == len({str(config) for config in configs}) <= 150


def test_one_weight_is_packed_for_each_of_two_tiles() -> None:
    weight = constant(16, 16, 3, 3)

    def build(x: relax.Expr) -> relax.Expr:
        return op.nn.conv2d(op.nn.relu(op.nn.conv2d(x, weight, padding=1)), weight, padding=1)

    lowered = lower_expression(build, [((1, 16, 8, 8), F32)], NATIVE)
    tiles = iter(sorted(TRANSFORMS))
    plans = []
    for kernel in lowered.kernels:
        if "conv2d" in kernel.name:
            tile = next(tiles)
            config = next(c for c in TEMPLATE.configs(kernel, NATIVE) if c["tile"] == tile)
            plans.append(plan(kernel, NATIVE, TEMPLATE, config))
        else:
            plans.append(plan(kernel, NATIVE, *guess(kernel, NATIVE)))
    _, weights = assemble(lowered, plans)
    assert sorted(array.shape[1] for array in weights if array.ndim == 4) == [16, 36]


# The last is how many values LLVM may put on the stack in a step of 80 multiply-adds: on ARM it loads in pairs.
INNER_LOOPS = [
    ("arm:cortex-a72", r"\tfmla\tv\d+\.4s", 1),
    ("x86:x86-64-v3", r"\tvfmadd\d+ps\t.*%ymm", 0),
    ("x86:x86-64-v4", r"\tvfmadd\d+ps\t.*%zmm", 0),
]


@pytest.mark.parametrize(("preset", "vector", "spilt"), INNER_LOOPS, ids=lambda value: value)
def test_the_inner_loop_is_vector_multiply_adds_only(preset: str, vector: str, spilt: int) -> None:
    target = parse_preset(preset)
    weight = constant(64, 64, 3, 3)
    inputs = [((1, 64, 48, 48), F32)]
    kernel = convolution(lower_expression(lambda x: op.nn.conv2d(x, weight, padding=1), inputs, target))
    config = TEMPLATE.guess(kernel, target)
    assembly = compile_function(TEMPLATE.schedule(kernel, target, config).function, target).inspect_source("asm")
    innermost = max(loop_bodies(assembly), key=lambda body: len(re.findall(vector, body)))
    expected = int(config["rows"]) * int(config["vectors"]) * int(config["unroll"])
    # Where a vector of channels is but a few such steps, LLVM writes them out.
    assert len(re.findall(vector, innermost)) in (expected, 2 * expected)
    assert len(re.findall(r"%[yz]mm\d+, .*\(%r|\tst[rp]\tq", innermost)) <= spilt
