"""The table of GPU architectures: complete, consistent, and the smallest of each limit for several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.targets.gpu_architectures import GPU_ARCHITECTURES, smallest_limits
from tvmbridge.targets.presets import CUDA_ARCHITECTURES

NAMES = st.lists(st.sampled_from(list(GPU_ARCHITECTURES)), min_size=1, max_size=5)


def test_it_has_every_architecture_that_a_target_may_name_in_the_order_of_their_numbers():
    assert tuple(GPU_ARCHITECTURES) == CUDA_ARCHITECTURES
    assert sorted(CUDA_ARCHITECTURES, key=lambda name: int(name[3:])) == list(CUDA_ARCHITECTURES)


@pytest.mark.parametrize("name", GPU_ARCHITECTURES)
def test_what_a_block_may_take_fits_into_a_multiprocessor(name):
    limits = GPU_ARCHITECTURES[name]
    # From sm_80 on the driver keeps a kilobyte for itself in every block.
    reserved = 0 if name == "sm_75" else 1024
    assert limits.shared_bytes_per_block == limits.shared_bytes_per_sm - reserved
    assert limits.static_shared_bytes <= limits.shared_bytes_per_block
    assert limits.threads_per_block <= limits.threads_per_sm
    assert limits.registers_per_block <= limits.registers_per_sm
    assert limits.registers_taken(limits.threads_per_block, 64) == limits.registers_per_block


@given(NAMES)
def test_several_offer_what_all_of_them_do(names):
    smallest = smallest_limits(names)
    each = [GPU_ARCHITECTURES[name] for name in names]
    for field in ("threads_per_sm", "blocks_per_sm", "shared_bytes_per_sm", "shared_bytes_per_block"):
        assert getattr(smallest, field) == min(getattr(limits, field) for limits in each)
    assert all(smallest.tensor_core_types <= limits.tensor_core_types for limits in each)
    assert "float16" in smallest.tensor_core_types
    assert smallest_limits(names[::-1]) == smallest


@pytest.mark.parametrize(
    ("threads", "registers", "taken"),
    [
        (128, 255, 32768),  # 256 registers of each of 4 × 32 threads
        (129, 32, 8192),  # a warp for one thread more, and a warp for each of the four parts
        (1024, 65, 73728),  # more than there are
        (1, 1, 1024),
    ],
)
def test_registers_are_taken_by_whole_warps_in_units_of_256(threads, registers, taken):
    assert GPU_ARCHITECTURES["sm_80"].registers_taken(threads, registers) == taken
