"""A GPU function that an architecture cannot launch is found out, with what it takes too much of."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.bundle.gpu_code import GpuFunction, MachineCode
from tvmbridge.codegen.launch_limits import find_launch_fault
from tvmbridge.targets.gpu_architectures import GPU_ARCHITECTURES


def function(*, registers: int = 32, shared: int = 0, **changes) -> GpuFunction:
    code = tuple(MachineCode(name, registers, shared, 0, 0, 0) for name in GPU_ARCHITECTURES)
    plain = GpuFunction("dense_kernel", "dense", (7, 1, 1), (256, 1, 1), 0, code)
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize("architecture", GPU_ARCHITECTURES)
def test_an_ordinary_function_can_be_launched(architecture):
    assert find_launch_fault(function(), architecture) is None
    most = function(block=(16, 32, 2), registers=64, shared=49152, grid=(2**31 - 1, 65535, 65535))
    assert find_launch_fault(most, architecture) is None


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (function(grid=(1, 65536, 1)), "its grid is 65536 along y; at most 65535 are allowed"),
        (function(block=(1, 1, 65)), "its block is 65 along z; at most 64 are allowed"),
        (function(block=(32, 33, 1)), "its block has 1056 threads; at most 1024 are allowed"),
        (function(shared=49156), "49156 bytes of shared memory are static; at most 49152 may be"),
        (
            function(registers=255, block=(512, 1, 1)),
            "512 threads of 255 registers take 131072 of them; there are 65536",
        ),
    ],
)
def test_what_no_architecture_can_launch_says_why(taken, said):
    assert find_launch_fault(taken, "sm_75") == find_launch_fault(taken, "sm_90") == said


def test_shared_memory_is_held_against_what_the_architecture_has():
    taken = function(dynamic_shared_bytes=90_000, shared=1_000)
    assert find_launch_fault(taken, "sm_86") is None and find_launch_fault(taken, "sm_90") is None
    assert find_launch_fault(taken, "sm_75") == "a block takes 91000 bytes of shared memory; there are 65536"


def test_an_architecture_that_no_code_is_known_for_is_held_against_the_launch_alone():
    assert find_launch_fault(function(code=(), dynamic_shared_bytes=0), "sm_80") is None
    assert find_launch_fault(function(code=(), block=(33, 32, 1)), "sm_80") is not None


@given(st.integers(1, 1024), st.integers(1, 255))
def test_a_launch_that_is_allowed_takes_no_more_registers_than_there_are(threads, registers):
    fault = find_launch_fault(function(block=(threads, 1, 1), registers=registers), "sm_90")
    assert (fault is None) == (GPU_ARCHITECTURES["sm_90"].registers_taken(threads, registers) <= 65536)
    assert fault is not None or threads * registers <= 65536
