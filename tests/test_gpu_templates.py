"""GPU templates for rows, maps and windows: right on an emulated device in any config, within the limits of any GPU."""

from __future__ import annotations

import math
import sys

import gpu_cases
import numpy as np
import pytest
import tvm_ffi
from cuda_code import cuda_source
from kernels import Build, Input, lower_expression
from tvm import relax, tirx

from tests.cuda_emulation import run_emulated
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.schedules.gpu import map as maps
from tvmbridge.schedules.gpu import rows, window
from tvmbridge.schedules.gpu.launch import MAX_THREADS, SHARED_BYTES

pytestmark = pytest.mark.compiler

op = relax.op
F16, F32 = gpu_cases.F16, gpu_cases.F32
TARGET = gpu_cases.GPU


def kernel_of(build: Build, *inputs: Input) -> Kernel:
    return lower_expression(build, list(inputs), TARGET).kernels[0]


def source(kernel: Kernel, template: Template, config: Config | None = None) -> str:
    config = template.guess(kernel, TARGET) if config is None else config
    return cuda_source(template.schedule(kernel, TARGET, config).function, TARGET)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2], ids=["guesses", "one config", "another"])
def test_every_case_agrees_with_the_cpu_on_an_emulated_device_whatever_the_order_of_threads(seed: int):
    done = run_emulated([sys.executable, "-m", "gpu_cases", str(seed)], CUDA_EMULATION_ORDER="random")
    taken = dict(part.split(": ") for part in done.stdout.strip("{}\n").replace("'", "").split(", "))
    assert {"rows", "map", "window"} <= taken.keys() and min(map(int, taken.values())) > 5


@pytest.mark.parametrize("place", range(len(gpu_cases.CASES)))
def test_every_config_keeps_to_the_limits_of_any_gpu(place: int):
    build, inputs = gpu_cases.CASES[place]
    for kernel in lower_expression(build, inputs, TARGET).kernels:
        template = fitting_templates(kernel, TARGET)[0]
        configs = template.configs(kernel, TARGET)
        assert template.guess(kernel, TARGET) in configs
        assert template.name in ("rows", "map", "window")
        for config in configs[:: max(1, len(configs) // 5)]:
            function = template.schedule(kernel, TARGET, config).function
            threads: dict[str, int] = {"threadIdx.x": 1}
            shared_bytes = 0

            def note_loop(loop: tirx.For, threads: dict[str, int] = threads) -> None:
                if loop.kind == tirx.ForKind.THREAD_BINDING:
                    tag = str(loop.thread_binding.thread_tag)
                    threads[tag] = max(threads.get(tag, 1), int(loop.extent))

            def note_buffer(made: tirx.AllocBuffer) -> None:
                nonlocal shared_bytes
                if made.buffer.scope() == "shared":
                    size = math.prod(int(axis) for axis in made.buffer.shape)
                    shared_bytes += size * np.dtype(str(made.buffer.dtype)).itemsize

            tvm_ffi.structural_walk(function.body, (tirx.For, note_loop))
            tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, note_buffer))
            assert threads["threadIdx.x"] <= MAX_THREADS and threads["threadIdx.x"] % 32 == 0
            assert shared_bytes <= SHARED_BYTES
            assert threads["blockIdx.x"] < 1 << 31


def test_the_channels_that_a_concat_joins_are_moved_in_whole_vectors():
    kernel = kernel_of(lambda x, y: op.concat([x, y], 1), ((4096, 64), F32), ((4096, 32), F32))
    code = source(kernel, maps.TEMPLATE, {"threads": 128, "vector": 4, "items": 1})
    assert "*(float4*)" in code and "make_float4" not in code


def test_an_axis_that_no_vector_divides_is_moved_one_by_one():
    kernel = kernel_of(lambda x, y: op.concat([x, y], 1), ((64, 5), F32), ((64, 2), F32))
    assert "float2" not in source(kernel, maps.TEMPLATE, {"threads": 128, "vector": 4, "items": 1})


def test_a_transpose_reads_and_writes_whole_rows_of_tiles():
    kernel = kernel_of(lambda x: op.permute_dims(x, [1, 0]), ((197, 64), F32))
    code = source(kernel, maps.TEMPLATE)
    assert "__shared__" in code and code.count("__syncthreads") == 1


def test_a_row_of_a_softmax_is_read_once_and_every_exponential_computed_once():
    kernel = kernel_of(lambda x: op.nn.softmax(x, -1), ((12, 128), F32))
    code = source(kernel, rows.TEMPLATE, {"members": 32, "threads": 128, "vector": 4})
    body = code[code.rindex("main_kernel(") :]
    assert body.count("expf(") == 4  # of four elements a thread
    assert body.count("x0_ptr") + body.count("_ptr + ((") <= 4 and "__syncthreads" not in body


def test_a_row_too_long_for_registers_is_read_again():
    kernel = kernel_of(lambda x: op.nn.softmax(x, -1), ((2, 100_000), F32))
    code = source(kernel, rows.TEMPLATE)
    assert "held_ptr[32]" not in code and code.count("for (") >= 3


def test_pooling_adds_up_in_registers():
    build = lambda x: op.nn.max_pool2d(x, [3, 3], [2, 2], [1, 1], layout="NHWC")  # noqa: E731
    kernel = kernel_of(build, ((1, 112, 112, 64), F32))
    code = source(kernel, window.TEMPLATE)
    body = code[code.rindex("main_kernel(") :]
    output = next(name for name in ("pool_max_ptr",) if name in body)
    assert body.count(output) == 2  # its parameter, and one store


def test_a_global_pooling_divides_its_sums_among_threads():
    build = lambda x: op.nn.avg_pool2d(x, [7, 7], layout="NHWC")  # noqa: E731
    kernel = kernel_of(build, ((1, 7, 7, 2048), F32))
    assert fitting_templates(kernel, TARGET)[0] is rows.TEMPLATE
    assert int(rows.TEMPLATE.guess(kernel, TARGET)["members"]) > 1


def test_what_has_no_elements_launches_nothing():
    kernel = kernel_of(lambda x: op.nn.relu(x), ((0, 4), F32))
    function = maps.TEMPLATE.schedule(kernel, TARGET, maps.TEMPLATE.guess(kernel, TARGET)).function
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(function.body, (tirx.For, loops.append))
    assert not loops


def test_what_is_no_row_map_or_window_is_left_to_others():
    kernel = kernel_of(lambda x, y: op.matmul(x, y), ((5, 70), F32), ((70, 3), F32))
    assert not any(template.fits(kernel, TARGET) for template in (rows.TEMPLATE, maps.TEMPLATE, window.TEMPLATE))
