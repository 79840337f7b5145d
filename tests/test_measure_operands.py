"""What kernels are timed on: where the weights of each call are, and how much of them a cache would have to hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from tvmbridge.lowering import Kernel
from tvmbridge.tuning.measure.operands import Operands, RandomData, rotated_bytes

pytestmark = pytest.mark.compiler

Shape = tuple[int, ...]
MIB = 1 << 20


def kernel(*tensors: tuple[Shape, str], constants: set[int], calls: int = 1) -> Kernel:
    """A kernel of these inputs, which nobody runs, and one output."""
    inputs = [te.placeholder(shape, dtype, f"x{i}") for i, (shape, dtype) in enumerate(tensors)]
    output = te.compute((3, 5), lambda i, j: tvm.tirx.const(1.0, "float32") + i + j, "y")
    return Kernel("k", te.create_prim_func([*inputs, output]), "k", frozenset(constants), calls)


def span(tensor: tvm.runtime.Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins and ends."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    size_bytes = int(np.prod(tensor.shape)) * (tvm.DataType(str(tensor.dtype)).bits // 8)
    array = np.from_dlpack(view(tensor, tvm_ffi.Shape([size_bytes]), tvm_ffi.dtype("uint8"), 0))
    address = array.ctypes.data
    return address, address + size_bytes


def operands(found: Kernel, data: RandomData) -> Operands:
    return Operands(found.function, found.constants, data)


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 97), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3),
    dtypes=st.lists(st.sampled_from(["float32", "float16", "bfloat16", "int8", "int64"]), min_size=3, max_size=3),
)
def test_weights_that_are_cold_are_somewhere_else_at_each_call(shapes, dtypes):
    tensors = [((7, 11), "float32"), *zip(shapes, dtypes, strict=False)]
    found = kernel(*tensors, constants=set(range(1, len(tensors))))
    calls = operands(found, RandomData(17 * MIB)).take(5)
    assert all(call[0] is calls[0][0] and call[-1] is calls[0][-1] for call in calls)
    for dtype in set(dtypes):
        weights = [t for call in calls for t in call[1:-1] if str(t.dtype) == dtype]
        spans = sorted(map(span, weights))
        assert all(start % 64 == 0 for start, _ in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for call in calls:
        assert [(tuple(t.shape), str(t.dtype)) for t in call[:-1]] == [(tuple(s), d) for s, d in tensors]


def test_calls_come_back_to_a_place_after_all_the_others():
    found = kernel(((1024, 1024), "float32"), ((1000,), "float32"), constants={0, 1})
    taken = operands(found, RandomData(32 * MIB)).take(20)
    starts = [span(call[0])[0] for call in taken]
    assert len(set(starts)) == 7
    assert starts[7:14] == starts[:7]
    assert max(starts) - min(starts) > 16 * MIB


def test_weights_that_stay_in_the_cache_stay_where_they_are():
    found = kernel(((64, 64), "float32"), ((9,), "float32"), constants={0})
    taken = operands(found, RandomData(0)).take(4)
    assert all(call is taken[0] for call in taken)


def test_a_weight_larger_than_any_cache_has_one_place():
    found = kernel(((5, 1024, 1024), "float32"), constants={0})
    taken = operands(found, RandomData(17 * MIB)).take(3)
    assert all(call is taken[0] for call in taken)
    assert tuple(taken[0][0].shape) == (5, 1024, 1024)


def test_data_vary_and_indices_are_in_range():
    data = RandomData(0)
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        drawn = data.of(dtype)[: 1 << 16].astype("float64")
        assert np.isfinite(drawn).all()
        assert 0.95 < drawn.std() < 1.05
    assert not data.of("int64").any()


def test_weights_are_cold_where_those_of_the_network_exceed_the_cache():
    weight = ((256, 1024), "float32")
    found = kernel(((256, 1024), "float32"), weight, constants={1}, calls=9)
    assert rotated_bytes([found], 8 * MIB) == 16 * MIB
    assert rotated_bytes([found], 9 * MIB) == 0
    assert rotated_bytes([found, found], 9 * MIB) == 18 * MIB
    assert rotated_bytes([kernel(weight, constants=set(), calls=9)], MIB) == 0


def test_a_weight_of_unknown_size_counts_for_nothing():
    rows = tvm.tirx.Var("rows", "int64")
    a = te.placeholder((rows, 37), "float32", "a")
    function = te.create_prim_func([a, te.compute((rows, 37), lambda i, j: a[i, j] * 2, "b")])
    assert rotated_bytes([Kernel("k", function, "k", frozenset({0}), 1)], 1) == 0
