"""Products of drawn shapes, types and configs, run on an emulated GPU and held against NumPy in float64.

`python -m gpu_product_cases SEED COUNT` in the emulated environment; it prints how often each template was taken.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import tvm_ffi
from gpu_cases import GPU, run_on_device
from kernels import assert_close, imported, plan, random_array, relax_module
from test_contraction import TAILS, conv2d_reference
from tvm import relax

from tests.cuda_emulation import compile_for_tvm
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import KernelPlan, plan_kernel
from tvmbridge.lowering import Kernel, lower
from tvmbridge.schedules.gpu import contraction, tensor_cores

op = relax.op
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 31, 32, 48, 64, 100)
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-3, "int32": 0.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """One product. inputs: what the network is given; build: its output from them; expected: in float64."""

    what: str
    inputs: list[np.ndarray]
    build: Callable[..., relax.Expr]
    expected: np.ndarray
    tolerance: float


def draw_matmul(draw: random.Random) -> Case:
    """A product of matrices, batched or not; the right one a weight or an input, as it comes or transposed."""
    generator = np.random.default_rng(draw.randrange(1000))
    dtype, sums = draw.choice(
        [("float32", "float32")] * 2 + [("float16", "float32"), ("float16",) * 2, ("float64",) * 2, ("int32",) * 2]
    )
    rows, depth, columns = (draw.choice(SIZES) for _ in range(3))
    batch = draw.choice([(), (3,), (2, 5)])
    x = random_array(generator, (*batch, rows, depth), dtype)
    shape = (*draw.choice([(), batch, (1,) * len(batch)]), depth, columns)
    transposed, given = draw.random() < 0.3, draw.random() < 0.5
    w = random_array(generator, (*shape[:-2], columns, depth) if transposed else shape, dtype)
    bias = random_array(generator, (columns,), sums)
    tail, reference = TAILS["nothing" if dtype == "int32" else draw.choice(sorted(TAILS))]

    def build(left: relax.Expr, right: relax.Expr | None = None) -> relax.Expr:
        right = relax.const(w, dtype) if right is None else right
        if transposed:
            right = op.permute_dims(right, [*range(w.ndim - 2), w.ndim - 1, w.ndim - 2])
        return tail(op.add(op.matmul(left, right, out_dtype=sums), relax.const(bias, sums)))

    right = np.swapaxes(w, -1, -2) if transposed else w
    expected = reference(x.astype("float64") @ right.astype("float64") + bias.astype("float64"))
    tolerance = TOLERANCE[sums] * math.sqrt(depth)
    return Case(f"matmul {dtype} {x.shape} {w.shape}", [x, w] if given else [x], build, expected, tolerance)


def draw_convolution(draw: random.Random) -> Case:
    """A convolution of any window, stride, border, dilation and number of groups."""
    generator = np.random.default_rng(draw.randrange(1000))
    dtype = draw.choice(["float32", "float16"])
    batch, height, width = draw.choice([1, 1, 2]), draw.choice([1, 3, 5, 7, 8, 13]), draw.choice([1, 3, 5, 7, 8, 14])
    groups = draw.choice([1, 1, 1, 2, 3])
    channels, filters = groups * draw.choice([1, 3, 8, 16, 20]), groups * draw.choice(SIZES)
    window, strides = ([draw.choice(choices) for _ in range(2)] for choices in ([1, 1, 2, 3], [1, 1, 2, 3]))
    dilation = [draw.choice([1, 1, 2]) for _ in range(2)]
    padding = [draw.choice([0, 0, 1, 2]) for _ in range(4)]
    for axis, extent in enumerate((height, width)):
        reach = dilation[axis] * (window[axis] - 1) + 1
        padding[axis] += max(0, reach - extent - padding[axis] - padding[axis + 2])
    x = random_array(generator, (batch, channels, height, width), dtype)
    w = random_array(generator, (filters, channels // groups, *window), dtype)
    tail, reference = TAILS[draw.choice(sorted(TAILS))]

    def build(image: relax.Expr) -> relax.Expr:
        weight = relax.const(w, dtype)
        return tail(op.nn.conv2d(image, weight, strides, padding, dilation, groups, out_dtype="float32"))

    expected = reference(conv2d_reference(x, w, strides, padding, dilation, groups))
    what = f"conv2d {dtype} {x.shape} {w.shape} strides {strides} padding {padding} dilation {dilation} groups {groups}"
    return Case(what, [x], build, expected, TOLERANCE["float32"] * math.sqrt(w[0].size))


def run_products(seed: int, count: int) -> Counter[str]:
    """Draw products, run them as one network, compare; how often each template was taken."""
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_for_tvm, override=True)
    draw = random.Random(seed)
    cases = [draw.choice([draw_matmul, draw_convolution])(draw) for _ in range(count)]
    arrays = [array for case in cases for array in case.inputs]

    def together(*parameters: relax.Expr) -> relax.Expr:
        left = list(parameters)
        return relax.Tuple([case.build(*(left.pop(0) for _ in case.inputs)) for case in cases])

    taken: Counter[str] = Counter()

    def planned(kernel: Kernel) -> KernelPlan:
        fitting = [each for each in (contraction.TEMPLATE, tensor_cores.TEMPLATE) if each.fits(kernel, GPU)]
        if not fitting:
            return plan_kernel(kernel, GPU, None)
        template = draw.choice(fitting)
        taken[template.name] += 1
        guessed = draw.random() < 0.3
        config = template.guess(kernel, GPU) if guessed else draw.choice(template.configs(kernel, GPU))
        return plan(kernel, GPU, template, config)

    module = imported(relax_module(together, [(array.shape, str(array.dtype)) for array in arrays]))
    lowered = lower(module, GPU)
    outputs = run_on_device(*assemble(lowered, [planned(kernel) for kernel in lowered.kernels]), arrays)
    for case, output in zip(cases, outputs, strict=True):
        assert np.isfinite(output).all(), case.what
        try:
            assert_close(output, case.expected, case.tolerance)
        except AssertionError as exc:
            raise AssertionError(case.what) from exc
    return taken


if __name__ == "__main__":
    for name, times in sorted(run_products(int(sys.argv[1]), int(sys.argv[2])).items()):
        print(name, times)
