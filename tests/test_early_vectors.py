"""Vector loops become vectors early where TVM can do that, and stay loops where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from kernels import random_array, run_function, runnable_targets
from tvm import tirx

from tvmbridge.lowering.early_vectors import early_vectors
from tvmbridge.schedules.loops.emit import loop, scratch, sequence, store, vectorized, with_body
from tvmbridge.schedules.loops.expressions import number

pytestmark = pytest.mark.compiler

ROWS, COLUMNS = 7, 16


def transposition(through_scratch: bool) -> tirx.PrimFunc:
    """y[c, r] = x[r, c] in vectors along the columns, at once or by way of a buffer with its columns first."""
    x = tirx.decl_buffer([ROWS, COLUMNS], "float32", "x")
    y = tirx.decl_buffer([COLUMNS, ROWS], "float32", "y")
    held, made = scratch([COLUMNS, ROWS], "float32", "held")

    def row(r: tvm.ir.Expr) -> tirx.Stmt:
        if not through_scratch:
            return vectorized(COLUMNS, lambda lane: store(y, [lane, r], tirx.BufferLoad(x, [r, lane])))
        there = vectorized(COLUMNS, lambda lane: store(held, [lane, r], tirx.BufferLoad(x, [r, lane])))
        back = vectorized(COLUMNS, lambda lane: store(y, [lane, r], tirx.BufferLoad(held, [lane, r])))
        return sequence(there, back)

    body = loop(ROWS, row)
    function = tirx.PrimFunc([x, y], tirx.Evaluate(number(0)))
    return with_body(function, sequence(made, body) if through_scratch else body)


@pytest.mark.parametrize("through_scratch", [False, True])
def test_lanes_in_any_index_compute_the_same(through_scratch: bool) -> None:
    function = transposition(through_scratch)
    early = early_vectors(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))["main"]
    # TVM takes vectors in the last index only; what a scratch buffer is indexed by says how large it has to be.
    assert ("T.vectorized" in early.script()) == through_scratch
    x = random_array(np.random.default_rng(0), (ROWS, COLUMNS), "float32")
    (y,) = run_function(function, runnable_targets()[0], [x])
    np.testing.assert_array_equal(y, x.T)
