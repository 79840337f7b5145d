"""What the map template's loops look like: no conditions, divisions or branches for every element."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest
import tvm
from kernels import (
    Build,
    Input,
    compile_function,
    guess,
    lower_expression,
    lower_function,
    plan,
    random_array,
    run_function,
    run_lowered,
    runnable_targets,
)
from test_map import KERNELS
from tvm import relax, te, topi

from tvmbridge.lowering import Kernel
from tvmbridge.schedules.cpu.map import TEMPLATE
from tvmbridge.schedules.loops.stages import inline, read_stages
from tvmbridge.schedules.reading.pieces import read_pieces
from tvmbridge.targets import Target, parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
RUNNABLE = runnable_targets()


def kernel_of(build: Build, inputs: list[Input], target: Target) -> Kernel:
    (kernel,) = lower_expression(build, inputs, target).kernels
    return kernel


def function_of(kernel: Kernel, target: Target) -> tvm.tirx.PrimFunc:
    template, config = guess(kernel, target)
    assert template is TEMPLATE
    return template.schedule(kernel, target, config).function


@pytest.mark.parametrize(
    ("preset", "vector", "scalar"),
    [
        ("arm:cortex-a72", r"\tfadd\tv\d+\.4s", r"\tfadd\ts\d"),
        ("x86:x86-64-v3", r"\tvaddps\t.*%ymm", r"\tvaddss\t"),
        ("x86:x86-64-v4", r"\tvaddps\t.*%zmm", r"\tvaddss\t"),
    ],
)
@pytest.mark.parametrize("columns", [307, 61])
def test_rows_of_a_prime_are_vectors_without_branches(preset: str, vector: str, scalar: str, columns: int) -> None:
    target = parse_preset(preset)
    kernel = kernel_of(lambda x, y: op.add(x, y), [((5, columns), F32), ((columns,), F32)], target)
    assembly = compile_function(function_of(kernel, target), target).inspect_source("asm")
    assert len(re.findall(vector, assembly)) >= 4
    assert re.findall(scalar, assembly) == []
    hot = [part for part in re.split(r"^\.L\w+:", assembly, flags=re.MULTILINE) if re.search(vector, part)]
    jumps = [len(re.findall(r"\t(j(?!mp)\w+|b\.\w+|cbn?z|tbn?z)\t", part)) for part in hot]
    assert max(jumps) <= 1  # the loop's own


def test_conditions_are_not_left_to_every_element() -> None:
    build, inputs, _ = KERNELS["large concat"]
    target = msgspec.structs.replace(RUNNABLE[0], cores=1)
    kernel = kernel_of(build, inputs, target)
    assert "if_then_else" in kernel.function.script()
    assert "if_then_else" not in function_of(kernel, target).script()


@pytest.mark.parametrize("shape", [(131, 12, 64), (49, 3, 80)], ids=["heads", "channel shuffle"])
def test_divisions_are_not_left_to_every_element(shape: tuple[int, int, int]) -> None:
    rows, groups, columns = shape
    a = te.placeholder((rows, groups * columns), F32, "a")
    moved = topi.transpose(topi.reshape(a, shape), (1, 2, 0))
    kernel = lower_function(te.create_prim_func([a, moved]))
    target = msgspec.structs.replace(RUNNABLE[0], cores=1)
    assert "%" in kernel.function.script() and "%" not in function_of(kernel, target).script()


def test_contiguous_axes_are_one() -> None:
    target = RUNNABLE[0]
    kernel = kernel_of(lambda x: op.nn.relu(op.reshape(x, (4, 6, 35))), [((2, 60, 7), F32)], target)
    (stage,) = inline(read_stages(kernel.function), lambda _: False)
    (piece,) = read_pieces(stage)
    assert [axis.extent for axis in piece.axes] == [4 * 6 * 35]


def test_a_concat_is_a_copy_of_each_part() -> None:
    target = RUNNABLE[0]
    kernel = kernel_of(lambda x, y: op.concat([x, y], 1), [((2, 3, 5), F32), ((2, 4, 5), F32)], target)
    pieces = read_pieces(inline(read_stages(kernel.function), lambda _: False)[0])
    assert [[axis.extent for axis in piece.axes] for piece in pieces] == [[2, 15], [2, 20]]
    assert all(isinstance(piece.value, tvm.ir.TensorLoad) for piece in pieces)


def test_two_outputs_that_share_an_intermediate_value_are_both_right() -> None:
    a = te.placeholder((211, 64), F32, "a")
    exponent = te.compute((211, 64), lambda i, j: tvm.tirx.exp(a[i, j]), "exponent")
    both = te.compute((211, 64), lambda i, j: exponent[i, j] + exponent[210 - i, 63 - j], "both")
    transposed = te.compute((64, 211), lambda i, j: exponent[j, i] * 2.0, "transposed")
    kernel = lower_function(te.create_prim_func([a, both, transposed]))
    array = random_array(np.random.default_rng(0), (211, 64), F32)
    for target in RUNNABLE:
        for config in TEMPLATE.configs(kernel, target):
            function = plan(kernel, target, TEMPLATE, config).scheduled.function
            one, two = run_function(function, target, [array])
            np.testing.assert_allclose(one, np.exp(array) + np.exp(array[::-1, ::-1]), rtol=1e-5)
            np.testing.assert_allclose(two, 2 * np.exp(array).T, rtol=1e-5)


@pytest.mark.parametrize(("rows", "loops"), [(4, 0), (4096, 1)])
def test_only_enough_work_is_shared_among_the_cores(rows: int, loops: int) -> None:
    kernel = kernel_of(lambda x: op.concat([x, x], -1), [((rows, 64), F32)], RUNNABLE[0])
    assert function_of(kernel, RUNNABLE[0]).script().count("T.parallel") == loops


@pytest.mark.parametrize(("columns", "fits"), [(9, True), (10, False)])
def test_a_reduction_of_many_terms_is_left_to_others(columns: int, fits: bool) -> None:
    kernel = kernel_of(lambda x: op.sum(x, 1), [((8, columns), F32)], RUNNABLE[0])
    assert TEMPLATE.fits(kernel, RUNNABLE[0]) == fits


def normalised(x: np.ndarray, size: int) -> np.ndarray:
    """Local response normalisation of the last axis, as ONNX has it."""
    squares = np.pad(x.astype("float64") ** 2, ((0, 0), ((size - 1) // 2, size // 2)))
    sums = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1).sum(-1)
    return x / (1 + 0.5 * sums / size) ** 0.75


@pytest.mark.parametrize("channels", [3, 16, 17, 64])
def test_a_neighbourhood_of_channels_is_summed_without_branches(channels: int) -> None:
    def build(x: relax.Expr) -> relax.Expr:
        squares = op.reshape(op.multiply(x, x), [1, 1, 37, 1, channels])
        mean = op.nn.avg_pool3d(squares, (1, 1, 5), (1, 1, 1), (0, 0, 2, 0, 0, 2), count_include_pad=True)
        scale = op.add(op.multiply(mean, relax.const(0.5)), relax.const(1.0))
        return op.divide(x, op.reshape(op.power(scale, relax.const(0.75)), [37, channels]))

    x = random_array(np.random.default_rng(0), (37, channels), F32)
    for target in RUNNABLE:
        lowered = lower_expression(build, [(x.shape, F32)], target)
        (pool,) = (kernel for kernel in lowered.kernels if "pool" in kernel.name)
        assert "if_then_else" not in TEMPLATE.schedule(pool, target, TEMPLATE.guess(pool, target)).function.script()
        (output,) = run_lowered(lowered, target, [x], lambda kernel: (TEMPLATE, TEMPLATE.guess(kernel, RUNNABLE[0])))
        np.testing.assert_allclose(output, normalised(x, 5), rtol=1e-5, atol=1e-6)
