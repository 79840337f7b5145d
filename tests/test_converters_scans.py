"""Running sums and products, forwards and backwards, with and without each element itself."""

from __future__ import annotations

import numpy as np
import pytest
from against_reference import assert_node

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize(("op_type", "opset"), [("CumSum", 14), ("CumProd", 26)])
def test_every_direction_runs(op_type: str, opset: int, exclusive: int, reverse: int) -> None:
    x = np.random.default_rng(1).uniform(0.5, 1.5, (3, 7, 2)).astype(np.float32)
    assert_node(op_type, [x, np.array(-2)], opset=opset, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64, np.float64])
def test_every_kind_of_number_is_added_up(dtype: type) -> None:
    x = np.random.default_rng(1).integers(0, 2**30, (2, 11)).astype(dtype)
    assert_node("CumSum", [x, np.array(1, np.int32)], opset=14)


def test_halves_are_added_up_in_single_precision() -> None:
    x = np.full(4000, 1.0, np.float16)
    assert_node("CumSum", [x, np.array(0)], opset=14, expected=[np.cumsum(x, dtype=np.float32).astype(np.float16)])
