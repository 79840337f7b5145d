"""The emulated CUDA device itself: what kernels may do gives what CUDA says, what they may not is an error."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from cuda_emulation import emulated_environment, make_toolkit, run_emulated
from cuda_emulation.raw import compile_source, run_kernel

from tvmbridge.codegen.cuda import nvcc_architectures
from tvmbridge.codegen.fatbin import parse_machine_code
from tvmbridge.gpus import Gpu, Gpus, find_gpus, read_gpu_states

pytestmark = pytest.mark.compiler

INVALID_VALUE, NO_BINARY, ILLEGAL_ADDRESS, OUT_OF_RESOURCES, LAUNCH_FAILED = 1, 209, 700, 701, 719

REVERSE = """
extern "C" __global__ void __launch_bounds__(256) k(float* x, float* y) {
  __shared__ alignas(64) float held[256];
  held[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
  BARRIER
  y[blockIdx.x * 256 + threadIdx.x] = held[255 - threadIdx.x];
}
"""


def rows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, length)).astype(np.float32)


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_threads_of_a_block_see_behind_a_barrier_what_the_others_have_written(order: str) -> None:
    x = rows(7, 256)
    source = REVERSE.replace("BARRIER", "__syncthreads();")
    ran = run_kernel(source, arrays={"x": x, "y": x}, grid=(7, 1, 1), block=(256, 1, 1), CUDA_EMULATION_ORDER=order)
    assert ran.code == 0
    assert np.array_equal(ran.arrays["y"], x[:, ::-1])


def test_a_missing_barrier_shows_as_nans() -> None:
    x = rows(2, 256)
    ran = run_kernel(
        REVERSE.replace("BARRIER", "__syncwarp();"), arrays={"x": x, "y": x}, grid=(2, 1, 1), block=(256, 1, 1)
    )
    assert np.isnan(ran.arrays["y"]).any()


def test_indices_and_sizes_in_three_dimensions_are_those_of_the_launch() -> None:
    source = """
    extern "C" __global__ void k(int* y) {
      int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      y[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
    }"""
    ran = run_kernel(source, arrays={"y": np.zeros((30, 24), np.int32)}, grid=(2, 3, 5), block=(4, 3, 2))
    assert np.array_equal(ran.arrays["y"], np.arange(30)[:, None] * 1000 + np.arange(24))


def test_dynamic_shared_memory_has_the_size_of_the_launch() -> None:
    source = """
    extern "C" __global__ void k(float* x) {
      extern __shared__ alignas(64) unsigned char held[];
      ((float*)held)[threadIdx.x + 19968] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = ((float*)held)[19968 + 31 - threadIdx.x];
    }"""
    x = rows(1, 32)
    ran = run_kernel(source, arrays={"x": x}, shared_bytes=80000)
    assert np.array_equal(ran.arrays["x"], x[:, ::-1])
    beyond = run_kernel(source, arrays={"x": x}, shared_bytes=70000)
    assert beyond.code == ILLEGAL_ADDRESS
    refused = run_kernel(source, arrays={"x": x}, shared_bytes=80000, CUDA_EMULATION_CAPABILITY="7.5")
    assert refused.code in (INVALID_VALUE, NO_BINARY)


def test_shuffles_and_votes_of_a_warp() -> None:
    source = """
    extern "C" __global__ void k(int* down, int* up, int* xored, int* from, int* votes) {
      int i = threadIdx.x;
      down[i] = __shfl_down_sync(0xffffffff, i, 3, 8);
      up[i] = __shfl_up_sync(0xffffffff, i, 3, 32);
      xored[i] = __shfl_xor_sync(0xffffffff, i, 5, 32);
      from[i] = __shfl_sync(0xffffffff, i, 2, 16);
      votes[i] = (__ballot_sync(0xffffffff, i % 3 == 0) == 0x49249249u >> 0) + 2 * __any_sync(0xffffffff, i == 9)
               + 4 * __all_sync(0xffffffff, i < 64);
    }"""
    names = ("down", "up", "xored", "from", "votes")
    ran = run_kernel(source, arrays={name: np.zeros(64, np.int32) for name in names}, block=(64, 1, 1))
    lanes = np.arange(64)
    assert np.array_equal(ran.arrays["down"], np.where(lanes % 8 + 3 < 8, lanes + 3, lanes))
    assert np.array_equal(ran.arrays["up"], np.where(lanes % 32 < 3, lanes, lanes - 3))
    assert np.array_equal(ran.arrays["xored"], lanes ^ 5)
    assert np.array_equal(ran.arrays["from"], lanes // 16 * 16 + 2)
    assert np.array_equal(ran.arrays["votes"], np.where(lanes < 32, 7, 4))


def test_the_active_mask_is_of_the_lanes_that_run_on_together() -> None:
    source = """
    extern "C" __global__ void k(unsigned* y) {
      if (threadIdx.x < 8) y[threadIdx.x] = __activemask();
      __syncwarp();
      y[threadIdx.x + 40] = __activemask();
    }"""
    ran = run_kernel(source, arrays={"y": np.zeros(80, np.uint32)}, block=(40, 1, 1))
    assert np.all(ran.arrays["y"][:8] == 0xFF)
    assert np.all(ran.arrays["y"][40:72] == 0xFFFFFFFF)
    assert np.all(ran.arrays["y"][72:] == 0xFF)


def test_atomic_additions_of_all_blocks_arrive() -> None:
    source = """
    extern "C" __global__ void k(float* sum, int* most) {
      atomicAdd(sum, 1.0f);
      atomicMax(most, (int)(blockIdx.x * blockDim.x + threadIdx.x));
    }"""
    arrays = {"sum": np.zeros(1, np.float32), "most": np.zeros(1, np.int32)}
    ran = run_kernel(source, arrays=arrays, grid=(50, 1, 1), block=(100, 1, 1))
    assert ran.arrays["sum"][0] == 5000
    assert ran.arrays["most"][0] == 4999


def test_float16_rounds_each_operation() -> None:
    source = """
    #include <cuda_fp16.h>
    extern "C" __global__ void k(half* x, half* y, half* z) {
      int i = blockIdx.x * 64 + threadIdx.x;
      z[i] = x[i] * y[i] / (hexp(y[i]) - __float2half(0.1f));
    }"""
    x, y = (array.astype(np.float16) for array in (rows(4, 64), rows(4, 64)[::-1]))
    ran = run_kernel(source, arrays={"x": x, "y": y, "z": x}, grid=(4, 1, 1), block=(64, 1, 1))
    expected = x * y / (np.exp(y.astype(np.float32)).astype(np.float16) - np.float16(0.1))
    assert np.array_equal(ran.arrays["z"], expected)


def test_bfloat16_rounds_to_nearest_even() -> None:
    source = """
    #include <cuda_bf16.h>
    extern "C" __global__ void k(float* x, float* y) { y[threadIdx.x] = float(nv_bfloat16(x[threadIdx.x])); }"""
    x = rows(1, 128)[0]
    ran = run_kernel(source, arrays={"x": x, "y": x}, block=(128, 1, 1))
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)
    assert np.array_equal(ran.arrays["y"].view(np.uint32), rounded)


WMMA = """
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void __launch_bounds__(64) k(half* a, half* b, SUM* c) {
  __shared__ alignas(64) half held[2][M * 16];
  wmma::fragment<wmma::matrix_a, M, N, 16, half, wmma::row_major> x;
  wmma::fragment<wmma::matrix_b, M, N, 16, half, wmma::col_major> y;
  wmma::fragment<wmma::accumulator, M, N, 16, SUM> z;
  wmma::fill_fragment(z, 0.0f);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int k = 0; k < 48; k += 16) {
    __syncthreads();
    for (int i = lane; i < M * 16; i += 32) held[warp][i] = a[(warp * M + i / 16) * 48 + k + i % 16];
    __syncthreads();
    wmma::load_matrix_sync(x, held[warp], 16);
    wmma::load_matrix_sync(y, b + k, 48);
    wmma::mma_sync(z, x, y, z);
  }
  wmma::store_matrix_sync(c + warp * M * N, z, N, wmma::mem_row_major);
}
"""


@pytest.mark.parametrize("sums", ["float", "half"])
@pytest.mark.parametrize(("m", "n"), [(16, 16), (32, 8), (8, 32)])
def test_tensor_cores_multiply_fragments(m: int, n: int, sums: str) -> None:
    a, b = rows(2 * m, 48).astype(np.float16), rows(n, 48).astype(np.float16)
    c = np.zeros((2 * m, n), np.float32 if sums == "float" else np.float16)
    source = f"#define M {m}\n#define N {n}\n#define SUM {sums}\n{WMMA}"
    ran = run_kernel(source, arrays={"a": a, "b": b, "c": c}, block=(64, 1, 1))
    assert ran.code == 0, ran.said
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    error = np.abs(ran.arrays["c"] - expected).max() / np.abs(expected).max()
    assert error < (1e-6 if sums == "float" else 2e-3)


def test_a_fragment_at_a_misaligned_address_is_an_error() -> None:
    source = f"#define M 16\n#define N 16\n#define SUM float\n{WMMA}".replace("b + k", "b + k + 8")
    a = rows(32, 48).astype(np.float16)
    ran = run_kernel(source, arrays={"a": a, "b": a, "c": np.zeros((32, 16), np.float32)}, block=(64, 1, 1))
    assert ran.code == LAUNCH_FAILED
    assert "no multiple of 32 bytes, in k, block (0, 0, 0), thread (31, 0, 0)" in ran.said


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("if (threadIdx.x < 5) __syncthreads();", LAUNCH_FAILED, "of 32 threads 5 wait at __syncthreads"),
        ("x[1 << 20] = 0;", ILLEGAL_ADDRESS, "which no allocation holds, in k, block (0, 0, 0), thread (0, 0, 0)"),
        ("x[64] += 1;", ILLEGAL_ADDRESS, "which no allocation holds"),
        ("__shared__ float s[32]; s[threadIdx.x + 1] = 0; x[0] = s[0];", ILLEGAL_ADDRESS, "behind the shared array s"),
        ("if (threadIdx.x) __shfl_sync(0xffffffff, 1, 0);", 0, ""),
        ("if (threadIdx.x % 2) __syncthreads(); else __syncwarp(0xffffffff);", LAUNCH_FAILED, "none can go on"),
        ("__shfl_sync(threadIdx.x ? 0xffffffff : 3, 1, 0);", LAUNCH_FAILED, "with different masks"),
        ("x[0] = 7 / (int)(threadIdx.x - 3 - blockIdx.x);", LAUNCH_FAILED, "divided by zero"),
        ("__trap();", LAUNCH_FAILED, "__trap() was called"),
    ],
)
def test_what_a_kernel_may_not_do_is_an_error_of_the_device(body: str, code: int, said: str) -> None:
    source = f'extern "C" __global__ void k(float* x) {{ {body} }}'
    ran = run_kernel(source, arrays={"x": np.zeros(64, np.float32)})
    assert ran.code == code, ran.said
    assert said in ran.said


@pytest.mark.parametrize(
    ("grid", "block", "code"),
    [
        ((1, 1, 1), (32, 33, 1), INVALID_VALUE),
        ((1, 1, 1), (1, 1, 65), INVALID_VALUE),
        ((0, 1, 1), (1, 1, 1), INVALID_VALUE),
        ((1, 65536, 1), (1, 1, 1), INVALID_VALUE),
        ((1, 1, 1), (128, 1, 1), OUT_OF_RESOURCES),
    ],
)
def test_a_launch_beyond_the_limits_is_refused(
    grid: tuple[int, int, int], block: tuple[int, int, int], code: int
) -> None:
    source = 'extern "C" __global__ void __launch_bounds__(64) k(float* x) { x[0] = 1; }'
    assert run_kernel(source, arrays={"x": np.zeros(1, np.float32)}, grid=grid, block=block).code == code


def test_too_much_static_shared_memory_does_not_compile(tmp_path: Path) -> None:
    source = 'extern "C" __global__ void k(float* x) { __shared__ float s[12289]; s[0] = x[0]; x[0] = s[1]; }'
    with pytest.raises(AssertionError, match="too much static shared memory"):
        compile_source(source, tmp_path)


def test_the_toolkit_looks_like_nvidias_to_tvmbridge(tmp_path: Path) -> None:
    toolkit = make_toolkit()
    assert {"sm_75", "sm_80", "sm_90"} <= set(nvcc_architectures(str(toolkit / "bin" / "nvcc")))
    image = compile_source('extern "C" __global__ void k(int* x) { *x = 1; }', tmp_path, ("sm_75", "sm_90"))
    assert parse_machine_code(image) == ("sm_75", "sm_90")
    environment = emulated_environment(toolkit, CUDA_EMULATION_CAPABILITY="9.0")

    def run(command: list[str]) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert find_gpus(run) == Gpus((Gpu("Emulated CUDA device", "sm_90", 8, 1000, 1000),), "13.0", None)
    assert find_gpus(run).devices[0].emulated
    assert [state.name for state in read_gpu_states(run)] == ["Emulated CUDA device"]


def test_code_for_another_major_version_does_not_load() -> None:
    source = 'extern "C" __global__ void k(int* x) { *x = 1; }'
    arrays = {"x": np.zeros(1, np.int32)}
    assert run_kernel(source, arrays=arrays, CUDA_EMULATION_CAPABILITY="7.5").code == NO_BINARY
    assert run_kernel(source, arrays=arrays, CUDA_EMULATION_CAPABILITY="8.6").code == 0
    assert run_kernel(source, arrays=arrays, CUDA_EMULATION_CAPABILITY="9.0").code == 0  # from PTX


# What programs do with the runtime's interface, without any kernel.
CALLS = """
import ctypes, os
cuda = ctypes.CDLL("libcudart.so.13")
size = ctypes.c_size_t(64)
device, pinned, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cudaMalloc(ctypes.byref(device), size) == 0
assert cuda.cudaMallocHost(ctypes.byref(pinned), size) == 0
assert cuda.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
room = (ctypes.c_ubyte * 64).from_address(pinned.value)
"""


def run_calls(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run_emulated([sys.executable, "-c", CALLS + textwrap.dedent(program)], **settings)


def test_a_copy_to_pinned_memory_is_not_done_before_the_program_waits_for_it() -> None:
    run_calls("""
        host = (ctypes.c_ubyte * 64)(*range(64))
        assert cuda.cudaMemcpyAsync(device, host, size, 1, stream) == 0
        assert cuda.cudaMemcpyAsync(pinned, device, size, 2, stream) == 0
        assert room[5] == 255
        assert cuda.cudaStreamSynchronize(stream) == 0
        assert list(room) == list(range(64))
    """)


def test_what_a_stream_records_runs_when_its_graph_is_launched_and_as_often() -> None:
    run_calls("""
        graph, instance = ctypes.c_void_p(), ctypes.c_void_p()
        assert cuda.cudaStreamBeginCapture(stream, 0) == 0
        assert cuda.cudaMemcpyAsync(device, pinned, size, 1, stream) == 0
        assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
        assert cuda.cudaGraphInstantiate(ctypes.byref(instance), graph, ctypes.c_ulonglong(0)) == 0
        back = (ctypes.c_ubyte * 64)()
        for number in (3, 4):
            room[9] = number
            assert cuda.cudaGraphLaunch(instance, stream) == 0
            assert cuda.cudaMemcpyAsync(back, device, size, 2, stream) == 0
            assert back[9] == number
        assert cuda.cudaGraphExecDestroy(instance) == 0 and cuda.cudaGraphDestroy(graph) == 0
    """)


def test_what_may_not_be_done_while_a_stream_is_captured_fails_and_spoils_the_capture() -> None:
    run_calls("""
        import concurrent.futures
        def elsewhere(call):
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(call).result()

        def captured(call, mode=0, on=stream):
            graph = ctypes.c_void_p(1)
            assert cuda.cudaStreamBeginCapture(on, mode) == 0
            code = call()
            assert cuda.cudaMemcpyAsync(device, pinned, size, 1, on) == (901 if code else 0)
            ended = cuda.cudaStreamEndCapture(on, ctypes.byref(graph))
            assert (ended == 0) == (graph.value is not None)
            assert graph.value or cuda.cudaGraphInstantiate(ctypes.byref(graph), graph, ctypes.c_ulonglong(0)) == 1
            return code, ended

        waits = ctypes.c_void_p()
        assert cuda.cudaStreamCreate(ctypes.byref(waits)) == 0
        malloc = lambda: cuda.cudaMalloc(ctypes.byref(ctypes.c_void_p()), size)
        pin = lambda: cuda.cudaMallocHost(ctypes.byref(ctypes.c_void_p()), size)
        legacy = lambda: cuda.cudaMemcpyAsync(device, pinned, size, 1, None)
        assert captured(malloc) == captured(lambda: elsewhere(malloc)) == captured(pin) == (900, 901)
        assert captured(lambda: cuda.cudaFree(device)) == captured(lambda: cuda.cudaFreeHost(pinned)) == (900, 901)
        assert captured(lambda: cuda.cudaStreamSynchronize(stream)) == (900, 901)
        assert captured(lambda: elsewhere(malloc), mode=1) == captured(malloc, mode=2) == (0, 0)
        assert captured(malloc, mode=1) == (900, 901)
        assert captured(legacy) == captured(lambda: cuda.cudaStreamSynchronize(None)) == (0, 0)
        assert captured(legacy, on=waits) == captured(lambda: elsewhere(legacy), on=waits) == (906, 901)
        assert captured(lambda: cuda.cudaStreamSynchronize(None), on=waits) == (906, 901)
        other = ctypes.c_void_p()
        assert captured(lambda: elsewhere(lambda: cuda.cudaStreamEndCapture(stream, ctypes.byref(other)))) == (908, 901)
        assert malloc() == legacy() == cuda.cudaStreamSynchronize(None) == 0
    """)


@pytest.mark.parametrize("again", [False, True])
def test_a_graph_that_uses_memory_which_has_been_freed_is_an_error(again: bool) -> None:
    done = run_calls(f"""
        graph, instance = ctypes.c_void_p(), ctypes.c_void_p()
        assert cuda.cudaStreamBeginCapture(stream, 0) == 0
        assert cuda.cudaMemcpyAsync(device, pinned, size, 1, stream) == 0
        assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
        assert cuda.cudaGraphInstantiate(ctypes.byref(instance), graph, ctypes.c_ulonglong(0)) == 0
        assert cuda.cudaFree(device) == 0
        if {again}:
            assert cuda.cudaMalloc(ctypes.byref(device), size) == 0
        assert cuda.cudaGraphLaunch(instance, stream) == 0
        assert cuda.cudaStreamSynchronize(stream) == 700
    """)
    assert "a copy of 64 bytes is of memory that has been freed" in done.stderr


def test_copies_out_of_bounds_and_memory_that_is_gone_are_refused() -> None:
    done = run_calls("""
        host = (ctypes.c_ubyte * 65)()
        assert cuda.cudaMemcpyAsync(device, host, ctypes.c_size_t(65), 1, stream) == 1
        assert cuda.cudaMemcpyAsync(host, host, size, 2, stream) == 1
        assert cuda.cudaFree(device) == 0
        assert cuda.cudaFree(device) == 1
        assert cuda.cudaMemcpyAsync(device, host, size, 1, stream) == 1
        assert cuda.cudaGetLastError() == 1 and cuda.cudaGetLastError() == 0
        assert cuda.cudaStreamDestroy(stream) == 0
        assert cuda.cudaStreamSynchronize(stream) == 400
        assert cuda.cudaMalloc(ctypes.byref(device), ctypes.c_size_t(2000)) == 2
    """, CUDA_EMULATION_MEMORY_BYTES="1500")  # fmt: skip
    assert "a copy of 65 bytes leaves the device's memory" in done.stderr


def test_a_forked_process_cannot_use_what_its_parent_has_initialised() -> None:
    done = run_calls("""
        child = os.fork()
        if not child:
            os._exit(cuda.cudaMalloc(ctypes.byref(device), size))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    """)
    assert "before this process was forked" in done.stderr


def test_events_take_the_time_between_them() -> None:
    run_calls("""
        first, last, taken = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
        for event in (first, last):
            assert cuda.cudaEventCreate(ctypes.byref(event)) == 0
        assert cuda.cudaEventRecord(first, stream) == 0
        assert cuda.cudaMemcpyAsync(device, pinned, size, 1, stream) == 0
        assert cuda.cudaEventRecord(last, stream) == 0
        assert cuda.cudaEventElapsedTime(ctypes.byref(taken), first, last) == 600
        assert cuda.cudaEventSynchronize(last) == 0
        assert cuda.cudaEventElapsedTime(ctypes.byref(taken), first, last) == 0 and 0 < taken.value < 1000
    """)
