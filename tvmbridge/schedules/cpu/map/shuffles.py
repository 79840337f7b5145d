"""Elements that lie apart in memory, or side by side in another order, by whole vector loads and shuffles of them.

A vector filled element by element costs a load and an insertion each; two vectors are shuffled in one instruction.
"""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmbridge.schedules.loops.expressions import number
from tvmbridge.schedules.loops.indices import at


def vector_load(buffer: tvm.ir.Var, start: tvm.ir.Expr, lanes: int) -> tvm.ir.Expr:
    """`lanes` neighbours from an offset on."""
    return tirx.BufferLoad(buffer, at(buffer, tirx.Ramp(start, number(1), lanes)))


def vector_store(buffer: tvm.ir.Var, start: int, value: tvm.ir.Expr, lanes: int) -> tirx.Stmt:
    """Store `lanes` neighbours from an offset on."""
    return tirx.BufferStore(buffer, value, at(buffer, tirx.Ramp(number(start), number(1), lanes)))


def _shuffled(vectors: list[tvm.ir.Expr], lanes: list[tuple[int, int]], width: int) -> tvm.ir.Expr:
    """One vector of the lanes given as (which vector, which of its `width` lanes)."""
    used = sorted({vector for vector, _ in lanes})
    places = [used.index(vector) * width + lane for vector, lane in lanes]
    chosen = [vectors[vector] for vector in used]
    chosen += chosen[:1] * (-(-len(lanes) // width) - len(used))  # TVM wants no fewer lanes than it is to pick
    return tirx.Shuffle(chosen, [tirx.IntImm("int32", place) for place in places])


def strided(buffer: tvm.ir.Var, start: tvm.ir.Expr, step: int, lanes: int) -> tvm.ir.Expr:
    """Every step-th element from `start` on; what is loaded lies between the first and the last of them."""
    reach = abs(step) * (lanes - 1)
    lowest = start if step > 0 else start - reach
    starts = [*range(0, (abs(step) - 1) * lanes, lanes), reach - (lanes - 1)]
    vectors = [vector_load(buffer, lowest + first, lanes) for first in starts]

    def place(lane: int) -> tuple[int, int]:
        distance = step * lane if step > 0 else reach + step * lane
        vector = min(distance // lanes, len(starts) - 1)
        return vector, distance - starts[vector]

    return _shuffled(vectors, [place(lane) for lane in range(lanes)], lanes)


def deinterleaved(buffer: tvm.ir.Var, start: tvm.ir.Expr, count: int, lanes: int) -> list[tvm.ir.Expr]:
    """The columns of [lanes, count] neighbours."""
    vectors = [vector_load(buffer, start + i * lanes, lanes) for i in range(count)]
    return [_shuffled(vectors, [divmod(i + count * lane, lanes) for lane in range(lanes)], lanes) for i in range(count)]


def interleaved(
    buffer: tvm.ir.Var, start: tvm.ir.Expr, steps: tuple[int, int], inner: int, lanes: int
) -> list[tvm.ir.Expr]:
    """`inner` vectors of [lanes, inner] elements in order, read with steps of (0 or 1, any) or (0, 1)."""
    outer_step, inner_step = steps
    if outer_step == 0:  # one vector of the inner elements, the same for every outer one
        vectors, width = [vector_load(buffer, start, inner)], inner
        places = [(0, i % inner) for i in range(lanes * inner)]
    else:
        vectors = [vector_load(buffer, start + inner_step * i, lanes) for i in range(inner)]
        width, places = lanes, [(i % inner, i // inner) for i in range(lanes * inner)]
    return [_shuffled(vectors, places[first : first + lanes], width) for first in range(0, lanes * inner, lanes)]


def transposed(
    buffer: tvm.ir.Var, start: tvm.ir.Expr, row_step: int, lanes: int
) -> tuple[list[tirx.Stmt], list[tvm.ir.Var]]:
    """The columns of `lanes` rows of `lanes` neighbours: the statements that compute them, and the vectors.

    log2(lanes) times the off-diagonal halves of ever smaller squares change places.
    """
    dtype = f"{buffer.dtype}x{lanes}"
    statements: list[tirx.Stmt] = []

    def bind(value: tvm.ir.Expr) -> tvm.ir.Var:
        var = tirx.Var("row", dtype)
        statements.append(tirx.Bind(var, value))
        return var

    rows = [bind(vector_load(buffer, start + row_step * i, lanes)) for i in range(lanes)]
    half = lanes // 2
    while half:
        swapped = list(rows)
        for upper in (i for i in range(lanes) if not i & half):
            pair = [rows[upper], rows[upper + half]]
            first = [(1, i - half) if i & half else (0, i) for i in range(lanes)]
            second = [(1, i) if i & half else (0, i + half) for i in range(lanes)]
            swapped[upper] = bind(_shuffled(pair, first, lanes))
            swapped[upper + half] = bind(_shuffled(pair, second, lanes))
        rows = swapped
        half //= 2
    return statements, rows
