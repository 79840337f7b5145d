"""Products of matrices where TVM has no such form, and determinants."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from tvmbridge.frontend.converters.reductions import cast, is_float
from tvmbridge.frontend.operator import Converter, Operator


def _matmul(op: Operator) -> relax.Expr | None:
    """Sums of nothing are 0: TVM would leave their places unwritten."""
    return op.const(np.zeros(op.result_shape())) if op.shape(0)[-1] == 0 else None


def _gemm(op: Operator) -> relax.Expr | None:
    """TVM cuts the factors to integers where the matrices are of integers, and leaves sums of nothing unwritten."""
    alpha, beta, dtype = op.attribute("alpha", 1.0), op.attribute("beta", 1.0), op.dtype(0)
    if not is_float(dtype) and not (float(alpha).is_integer() and float(beta).is_integer()):
        op.refuse(f"matrices of integers with the factors {alpha:g} and {beta:g}")
    if op.shape(0)[0 if op.attribute("transA", 0) else 1]:
        return None
    zeros = op.const(np.zeros(op.result_shape()))
    return op.emit(relax.op.add(zeros, _scaled(op, 2, beta))) if op.has(2) else zeros


def _scaled(op: Operator, position: int, factor: float) -> relax.Expr:
    return op.emit(relax.op.multiply(op.input(position), op.const(factor)))


def _determinants(matrices: te.Tensor) -> list[te.Tensor]:
    """(count,), by elimination below the greatest element of each column; and what of the matrices is left.

    matrices: (count, n, n), n of 1 or more.
    """
    count, size, _ = matrices.shape
    dtype = matrices.dtype

    def write(given: tirx.Buffer, result: tirx.Buffer, left: tirx.Buffer, pivot: tirx.Buffer) -> tirx.Stmt:
        with IRBuilder() as builder, script.serial(0, count) as b:
            with script.serial(0, size) as row, script.serial(0, size) as column:
                script.buffer_store(left, given[b, row, column], [b, row, column])
            script.buffer_store(result, tirx.const(1, dtype), [b])
            with script.serial(0, size) as step:
                script.buffer_store(pivot, step, [b])
                with script.serial(0, size) as row:
                    better = tirx.abs(left[b, row, step]) > tirx.abs(left[b, pivot[b], step])
                    below = tirx.all(row > step, better)
                    script.buffer_store(pivot, tirx.Select(below, row, pivot[b]), [b])
                with script.serial(0, size) as column:  # the row above the result's place holds what is exchanged
                    script.buffer_store(left, left[b, pivot[b], column], [b, size, column])
                    script.buffer_store(left, left[b, step, column], [b, pivot[b], column])
                    script.buffer_store(left, left[b, size, column], [b, step, column])
                found = left[b, step, step]
                signed = tirx.Select(pivot[b] == step, found, -found)
                script.buffer_store(result, result[b] * signed, [b])
                divisor = tirx.Select(found == 0, tirx.const(1, dtype), found)
                with script.serial(0, size) as row:
                    below = tirx.Select(row > step, left[b, row, step] / divisor, tirx.const(0, dtype))
                    script.buffer_store(left, below, [b, size, row])
                with script.serial(0, size) as row, script.serial(0, size) as column:
                    kept = left[b, row, column] - left[b, size, row] * left[b, step, column]
                    script.buffer_store(left, tirx.Select(row > step, kept, left[b, row, column]), [b, row, column])
        return builder.get()

    shapes, dtypes = [(count,), (count, size + 1, size), (count,)], [dtype, dtype, "int64"]
    buffers = [
        tirx.decl_buffer(shape, kind, name, layout=None)
        for shape, kind, name in zip(shapes, dtypes, ("determinant", "left", "pivot"), strict=True)
    ]
    return te.extern(
        shapes,
        [matrices],
        lambda inputs, outputs: write(inputs[0], *outputs),
        dtype=dtypes,
        out_buffers=buffers,
        name="determinant",
    )


def _det(op: Operator) -> relax.Expr:
    *batch, size, columns = op.shape(0)
    if size != columns:
        op.refuse(f"its matrices are {size} by {columns}, not square")
    dtype = op.dtype(0)
    if size == 0:
        return op.const(np.ones(batch))
    wide = "float64" if dtype == "float64" else "float32"
    x = op.emit(relax.op.reshape(cast(op, op.input(0), wide), (int(np.prod(batch)), size, size)))
    made = op.compute(_determinants, x, name="determinant")
    found = op.emit(relax.TupleGetItem(made, 0))
    return cast(op, op.emit(relax.op.reshape(found, batch)), dtype)


CONVERTERS: dict[str, Converter] = {
    "Det": _det,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
