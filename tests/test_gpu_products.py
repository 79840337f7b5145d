"""Products on a GPU: their inner loops are multiply-adds on registers, and no sum is kept elsewhere."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from cuda_code import cuda_source, ptx, spilled_bytes
from kernels import guess, lower_expression, random_array
from tvm import relax

from tests.cuda_emulation import run_emulated
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config
from tvmbridge.schedules.gpu import contraction, tensor_cores
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F16, F32 = "float16", "float32"
TARGET = parse_preset("cuda:sm_80")


def constant(*shape: int, dtype: str = F32) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(0), shape, dtype), dtype)


def product_kernel(build, inputs) -> Kernel:
    (kernel,) = (k for k in lower_expression(build, inputs, TARGET).kernels if contraction.TEMPLATE.fits(k, TARGET))
    return kernel


def matmul(rows: int, depth: int, columns: int, dtype: str = F32) -> Kernel:
    return product_kernel(op.matmul, [((rows, depth), dtype), ((depth, columns), dtype)])


def convolution(channels: int, filters: int, size: int, groups: int = 1, dtype: str = F32) -> Kernel:
    weight = constant(filters, channels // groups, 3, 3, dtype=dtype)
    return product_kernel(
        lambda x: op.nn.relu(op.nn.conv2d(x, weight, padding=1, groups=groups, out_dtype=F32)),
        [((1, channels, size, size), dtype)],
    )


@pytest.mark.parametrize(
    ("kernel", "config"),
    [
        (matmul(256, 256, 256), {"rows": 128, "columns": 64, "thread_rows": 8, "thread_columns": 8, "depth": 16}),
        (convolution(64, 64, 56), {"rows": 64, "columns": 64, "thread_rows": 8, "thread_columns": 4, "depth": 8}),
        (matmul(197, 64, 200), {"rows": 32, "columns": 32, "thread_rows": 4, "thread_columns": 4, "depth": 32}),
    ],
    ids=["even", "padded", "ragged"],
)
def test_the_inner_loop_is_multiply_adds_on_registers(kernel: Kernel, config: Config) -> None:
    config = {**config, "slices": 1, "splits": 1}
    assert config in contraction.TEMPLATE.configs(kernel, TARGET)
    code = ptx(cuda_source(contraction.TEMPLATE.schedule(kernel, TARGET, config).function, TARGET), "sm_80")
    loop = longest_loop(code)
    rows, columns, depth = (int(config[name]) for name in ("thread_rows", "thread_columns", "depth"))
    assert loop.count("\tfma.rn.f32") == rows * columns * depth
    # A thread's elements of a term come in vectors of four; nothing is read twice, and nothing from local memory.
    assert loop.count("\tld.shared.v4.f32") == (rows + columns) // 4 * depth
    assert re.findall(r"\tld\.shared\.(?!v4)", loop) == [] and ".local" not in code


def test_tensor_cores_multiply_what_is_float16() -> None:
    kernel = convolution(64, 64, 28, dtype=F16)
    config = {"rows": 64, "columns": 64, "warp_rows": 32, "warp_columns": 32, "depth": 32, "splits": 1}
    assert guess(kernel, TARGET)[0].name == "tensor_cores"
    code = ptx(cuda_source(tensor_cores.TEMPLATE.schedule(kernel, TARGET, config).function, TARGET), "sm_80")
    loop = longest_loop(code)
    # 2 × 2 fragments of sums, 32 terms of 16 a fragment; each fragment of an operand is loaded once.
    assert len(re.findall(r"\twmma\.mma\.sync", loop)) == 2 * 2 * 2
    assert len(re.findall(r"\twmma\.load\.[ab]\.sync", loop)) == (2 + 2) * 2
    assert ".local" not in code


@pytest.mark.parametrize("padding", [0, 1])
def test_tensor_cores_multiply_what_precision_makes_float16_padded_or_not(padding: int) -> None:
    half = parse_preset("cuda:sm_80,float16")
    weights = [constant(64, depth, 3, 3) for depth in (16, 64)]

    def build(x: relax.Expr) -> relax.Expr:
        for weight in weights:
            x = op.nn.relu(op.nn.conv2d(x, weight, padding=padding))
        return x

    kernels = lower_expression(build, [((1, 16, 28, 28), F32)], half).kernels
    products = [kernel for kernel in kernels if contraction.TEMPLATE.fits(kernel, half)]
    assert [guess(kernel, half)[0].name for kernel in products] == ["tensor_cores"] * 2


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize(
    "kernel",
    [
        convolution(64, 64, 56),
        convolution(3, 64, 31),
        convolution(24, 48, 14, groups=3),
        convolution(512, 512, 7),
        matmul(1, 2048, 1000),
        matmul(37, 51, 29),
        convolution(64, 64, 28, dtype=F16),
        matmul(197, 192, 576, dtype=F16),
    ],
    ids=["3x3", "three channels", "groups", "few pixels", "one row", "ragged", "3x3 float16", "ragged float16"],
)
def test_what_is_guessed_needs_no_local_memory(kernel: Kernel, architecture: str) -> None:
    target = parse_preset(f"cuda:{architecture}")
    template, config = guess(kernel, target)
    assert template in (contraction.TEMPLATE, tensor_cores.TEMPLATE)
    assert config in template.configs(kernel, target)
    assert spilled_bytes(cuda_source(template.schedule(kernel, target, config).function, target), architecture) == 0


def test_few_tiles_are_split_along_the_depth_and_many_are_not() -> None:
    assert guess(convolution(512, 512, 7), TARGET)[1]["splits"] > 1
    assert guess(convolution(64, 64, 224), TARGET)[1]["splits"] == 1


def test_how_many_tiles_are_few_depends_on_the_multiprocessors() -> None:
    sixteen, many = (parse_preset(f"cuda:{architecture}") for architecture in ("sm_87", "sm_90"))
    assert guess(convolution(256, 256, 28), sixteen)[1]["splits"] < guess(convolution(256, 256, 28), many)[1]["splits"]


def longest_loop(code: str) -> str:
    """The body of the loop in PTX that has most instructions: from a label to the last jump back to it."""
    parts = re.split(r"^(\$L__BB\w+):", code, flags=re.MULTILINE)
    labels = parts[1::2]
    bodies = []
    for index, label in enumerate(labels):
        text = "".join(parts[2 * index + 2 :])
        jumps = [found.start() for found in re.finditer(rf"\bbra\S*\s+{re.escape(label)};", text)]
        bodies += [text[: jumps[-1]]] if jumps else []
    return max(bodies, key=len)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["forward", "random"])
def test_drawn_products_agree_with_numpy_on_an_emulated_gpu(order: str) -> None:
    """In any order of a block's threads: where a barrier were missing, some would read what is not there yet."""
    command = [sys.executable, "-m", "gpu_product_cases", {"forward": "1", "random": "2"}[order], "30"]
    taken = run_emulated(command, CUDA_EMULATION_ORDER=order).stdout.split()
    assert {"contraction", "tensor_cores"} <= set(taken)
