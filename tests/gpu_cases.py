"""Expressions of all kinds that the GPU templates for rows, maps and windows take, and a run of them on a GPU.

`python -m gpu_cases SEED` in the emulated environment lowers them together for a GPU and for this machine's CPU, whose
templates have tests of their own, draws a template and a config for each kernel (SEED 0: the guesses), and compares.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tvm
import tvm_ffi
from kernels import Build, Input, imported, plan, random_array, relax_module, run_lowered
from tvm import relax

from tests.cuda_emulation import compile_for_tvm
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import KernelPlan, plan_kernel
from tvmbridge.lowering import Kernel, lower
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import fitting_templates
from tvmbridge.targets import parse_preset

op = relax.op
F16, F32, F64, I64 = "float16", "float32", "float64", "int64"
GPU, CPU = parse_preset("cuda:sm_80"), parse_preset("native")
TOLERANCE = {F16: 4e-3, F32: 2e-5, F64: 1e-12}

Case = tuple[Build, list[Input]]


def _of(build: Build, *shapes: tuple[int, ...], dtype: str = F32) -> Case:
    return build, [(shape, dtype) for shape in shapes]


def _norm(function: Callable[..., relax.Expr], axes: int, size: int, dtype: str) -> Build:
    generator = np.random.default_rng(size)
    weights = [relax.const(random_array(generator, (size,), dtype), dtype) for _ in range(2)]
    return lambda x: function(x, *weights[: 1 if function is op.nn.rms_norm else 2], axes)


def _group_norm(channels: int, groups: int) -> Build:
    generator = np.random.default_rng(channels)
    weights = [relax.const(random_array(generator, (channels,), F32), F32) for _ in range(2)]
    return lambda x: op.nn.group_norm(x, *weights, groups, 1, [2, 3])


def _depthwise(
    channels: int, window: int, stride: int, dilation: int = 1, dtype: str = F32, tail: Build | None = None
) -> Build:
    weight = random_array(np.random.default_rng(channels), (channels, 1, window, window), dtype)
    pad = window // 2 * dilation

    def build(x: relax.Expr) -> relax.Expr:
        y = op.nn.conv2d(x, relax.const(weight, dtype), stride, pad, dilation, channels)
        return y if tail is None else tail(y)

    return build


ROWS: list[Case] = [
    _of(lambda x: op.nn.softmax(x, -1), (3, 5, 197)),
    _of(lambda x: op.nn.softmax(x, -1), (2, 1000)),
    _of(lambda x: op.nn.softmax(x, -1), (1, 1)),
    _of(lambda x: op.nn.softmax(x, -1), (7, 8), dtype=F16),
    _of(lambda x: op.nn.softmax(x, 1), (2, 13, 37)),
    _of(lambda x: op.nn.softmax(x, -1), (2, 40_000)),  # too long for registers
    _of(lambda x: op.nn.log_softmax(x, -1), (5, 130), dtype=F64),
    _of(lambda x: op.sum(x), (31, 17)),
    _of(lambda x: op.sum(x, [1]), (4, 2_000), dtype=I64),
    _of(lambda x: op.sum(x, [0]), (257, 3)),
    _of(lambda x: op.mean(x, [1, 2]), (2, 7, 7, 37)),
    _of(lambda x: op.mean(x, [0, 2]), (5, 6, 11)),
    _of(lambda x: op.max(x, [1]), (9, 130), dtype="int32"),
    _of(lambda x: op.min(x, [0]), (9, 130), dtype="int8"),
    _of(lambda x: op.min(x, [1], keepdims=True), (5, 33), dtype=F16),
    _of(lambda x: op.prod(x, [2]), (2, 3, 5)),
    _of(lambda x: op.variance(x, [-1]), (6, 76)),
    _of(_norm(op.nn.layer_norm, -1, 197, F32), (6, 197)),
    _of(_norm(op.nn.layer_norm, -1, 64, F16), (3, 64), dtype=F16),
    _of(_norm(op.nn.layer_norm, -1, 768, F32), (1, 768)),
    _of(_norm(op.nn.rms_norm, -1, 100, F32), (11, 100)),
    _of(_group_norm(12, 3), (2, 12, 5, 7)),
]
MAPS: list[Case] = [
    _of(lambda x: op.permute_dims(x, [0, 2, 1]), (2, 33, 65)),
    _of(lambda x: op.permute_dims(x, [2, 1, 0]), (40, 17, 50)),
    _of(lambda x: op.permute_dims(x, [1, 0]), (64, 96), dtype=F16),
    _of(lambda x, y: op.add(op.permute_dims(x, [1, 0]), y), (31, 45), (45, 31)),
    _of(lambda x, y: op.concat([x, y], 2), (3, 5, 8), (3, 5, 12)),
    _of(lambda x, y: op.concat([x, y], 1), (3, 5, 7), (3, 2, 7)),
    _of(lambda x: op.nn.pad(x, [0, 0, 2, 1, 4, 4]), (2, 5, 16)),
    _of(lambda x: op.strided_slice(x, [1], [17], [2], [-3]), (3, 19)),
    _of(lambda x: op.split(x, 3, 1)[1], (4, 12)),
    _of(lambda x: op.flip(x, 1), (5, 9)),
    _of(lambda x: op.tile(x, [2, 3]), (3, 4)),
    _of(lambda x, y: op.add(x, y), (7, 1, 12), (5, 1)),
    _of(lambda x: op.erf(op.multiply(x, op.sigmoid(x))), (3, 1_024)),
    _of(lambda x: op.clip(op.exp(x), 0.5, 2.0), (1, 63), dtype=F16),
    _of(lambda x: op.astype(x, F16), (3, 16)),
    _of(lambda x: op.astype(x, F32), (3, 17), dtype="int8"),
    _of(lambda x, y: op.where(op.greater(x, y), x, y), (4, 16), (4, 16)),
    _of(lambda x, y: op.multiply(x, y), (40,), (40,), dtype="int32"),
    _of(lambda x: op.nn.relu(op.reshape(x, [8, 9])), (3, 24)),
    _of(lambda x: op.negative(x), ()),
    _of(lambda x: op.image.resize2d(x, [9, 6], layout="NCHW", method="linear"), (1, 2, 5, 7)),
    (lambda x, i: op.take(x, i, 0), [((9, 12), F32), ((5,), I64)]),
    _of(lambda x: op.negative(x), (300, 301), dtype=F64),
    _of(lambda x: op.nn.relu(x), (64, 64, 32)),
]
WINDOWS: list[Case] = [
    _of(lambda x: op.nn.max_pool2d(x, [3, 3], [2, 2], [1, 1], layout="NHWC"), (1, 17, 13, 24)),
    _of(lambda x: op.nn.max_pool2d(x, [3, 3], [1, 1], [1, 1], ceil_mode=True), (2, 5, 7, 7)),
    _of(lambda x: op.nn.avg_pool2d(x, [2, 2], [2, 2], [0, 1], layout="NHWC"), (1, 9, 10, 16)),
    _of(lambda x: op.nn.avg_pool2d(x, [3, 2], [1, 2], [1, 1], layout="NHWC"), (2, 6, 5, 7)),
    _of(lambda x: op.nn.avg_pool2d(x, [7, 7]), (1, 130, 7, 7)),
    _of(_depthwise(16, 3, 1), (1, 16, 9, 11)),
    _of(_depthwise(32, 3, 2, tail=lambda y: op.clip(y, 0.0, 6.0)), (1, 32, 14, 14)),
    _of(_depthwise(7, 5, 1, dilation=2), (2, 7, 13, 8)),
    _of(_depthwise(8, 3, 1, dtype=F16), (1, 8, 6, 5), dtype=F16),
    _of(_depthwise(4, 9, 1), (1, 4, 12, 9)),  # too large to be written out
    _of(lambda x: op.nn.max_pool1d(x, [3], [2], [1], layout="NWC"), (1, 31, 12)),
    _of(lambda x: op.nn.max_pool3d(x, [2, 2, 2], [1, 2, 2], layout="NDHWC"), (1, 4, 6, 5, 8)),
    _of(lambda x: op.nn.avg_pool3d(x, [5, 1, 1], [1, 1, 1], [2, 0, 0]), (1, 1, 16, 4, 5)),  # along the channels
]
CASES = [*ROWS, *MAPS, *WINDOWS]


def _inputs(generator: np.random.Generator) -> Iterator[np.ndarray]:
    for _, inputs in CASES:
        for shape, dtype in inputs:
            yield generator.integers(0, 9, size=shape) if dtype == I64 else random_array(generator, shape, dtype)


def _together(parameters: list[relax.Expr]) -> relax.Expr:
    left, outputs = list(parameters), []
    for build, inputs in CASES:
        outputs.append(build(*(left.pop(0) for _ in inputs)))
    return relax.Tuple(outputs)


def run_on_gpu(seed: int) -> dict[str, int]:
    """Compare all cases; how many kernels each template took."""
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_for_tvm, override=True)
    arrays = list(_inputs(np.random.default_rng(1)))
    inputs = [(array.shape, str(array.dtype)) for array in arrays]
    module = imported(relax_module(lambda *parameters: _together(list(parameters)), inputs))
    drawn, counts = random.Random(seed), dict[str, int]()

    def planned(kernel: Kernel) -> KernelPlan:
        template = next(t for t in fitting_templates(kernel, GPU))
        counts[template.name] = counts.get(template.name, 0) + 1
        if seed == 0:
            return plan_kernel(kernel, GPU, None)
        return plan(kernel, GPU, template, drawn.choice(template.configs(kernel, GPU)))

    lowered = lower(module, GPU)
    ours = run_on_device(*assemble(lowered, [planned(kernel) for kernel in lowered.kernels]), arrays)
    theirs = run_lowered(lower(module, CPU), CPU, arrays)
    for place, (case, mine, reference) in enumerate(zip(CASES, ours, theirs, strict=True)):
        tolerance = max((TOLERANCE.get(dtype, 0.0) for dtype in (str(mine.dtype), case[1][0][1])), default=0.0)
        scale = max(1.0, float(np.abs(reference.astype(F64)).max(initial=0.0)))
        np.testing.assert_allclose(
            mine.astype(F64), reference.astype(F64), rtol=0, atol=tolerance * scale, err_msg=f"case {place}: {case[1]}"
        )
    return counts


def run_on_device(
    module: tvm.IRModule, weights: Sequence[np.ndarray], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Compile an assembled module whose main returns a tuple, and run it on GPU 0; its outputs."""
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(machine_code(module, tvm_target(GPU)), device)
    fed = [tvm.runtime.tensor(array, device) for array in arrays]
    packed = [[tvm.runtime.tensor(weight, device) for weight in weights]] if weights else []
    return [output.numpy() for output in machine["main"](*fed, *packed)]


if __name__ == "__main__":
    print(run_on_gpu(int(sys.argv[1])))
