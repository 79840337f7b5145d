"""Several neighbouring elements by one thread: when expressions can be computed as vectors, and how they then read."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import loads, number, substitute, variables
from tvmbridge.schedules.loops.indices import linear, offset

VECTOR_BYTES = 16  # of the widest load and store
_VECTORS = frozenset({"float16", "float32", "int32"})  # what TVM has vectors of that are more than loops over lanes
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def widest_lanes(
    values: Sequence[tvm.ir.Expr], offsets: Sequence[tvm.ir.Expr], inner: tvm.ir.Var, extent: int, most: int
) -> int:
    """The most elements along an axis, a power of two up to `most` that divides its extent, to be computed as vectors.

    values: loads of them along the axis `inner` must be of neighbours, and no condition, clip or division may differ
    from lane to lane. offsets: where they are stored, which must be neighbours too.
    """
    widest = min(most, *(VECTOR_BYTES // _bytes(str(value.ty.dtype)) for value in values))
    for value in values:
        widest = min(widest, *(VECTOR_BYTES // _bytes(str(load.ty.dtype)) for load in loads(value)), widest)
    if not all(_varies_in_vectors(value, inner) for value in values):
        return 1
    if not all(linear(place).steps.get(inner) == 1 and not _others_use(place, inner) for place in offsets):
        return 1
    lanes = 1
    while lanes * 2 <= widest and extent % (lanes * 2) == 0:
        if any(_as_vector(value, inner, lanes * 2) is None for value in values):
            break
        lanes *= 2
    return lanes


def in_lane(value: tvm.ir.Expr, inner: tvm.ir.Var, lanes: int, vector: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
    """The value where `inner` stands in one lane of a vector, of as many lanes as `widest_lanes` allows."""
    if lanes == 1:
        return substitute(value, {inner: vector})
    found = _as_vector(value, inner, lanes)
    assert found is not None
    expr, vector_var, lane_var = found
    return substitute(expr, {vector_var: vector, lane_var: lane})


def _bytes(dtype: str) -> int:
    return max(1, tvm.DataType(dtype).bits // 8)


def _varies_in_vectors(value: tvm.ir.Expr, inner: tvm.ir.Var) -> bool:
    """Whether all that varies along the axis, offsets aside, is of types that TVM has vectors of."""
    found = {str(value.ty.dtype)}

    def visit(node: tvm.ir.TensorLoad | tirx.Cast) -> tvm_ffi.WalkResult | None:
        if _uses(node, inner):
            found.add(str(node.ty.dtype))
        return tvm_ffi.WalkResult.SKIP if isinstance(node, tvm.ir.TensorLoad) else None

    tvm_ffi.structural_walk(value, ((tvm.ir.TensorLoad, tirx.Cast), visit), order="pre")
    return found <= _VECTORS


def _as_vector(value: tvm.ir.Expr, inner: tvm.ir.Var, lanes: int) -> tuple[tvm.ir.Expr, tvm.ir.Var, tvm.ir.Var] | None:
    """The value at `inner` = vector · lanes + lane, the lane in nothing but offsets of neighbours; the two variables.

    None where it cannot be.
    """
    vector, lane = tvm.ir.Var("vector", "int64"), tvm.ir.Var("lane", "int64")

    def whole(expr: tvm.ir.Expr) -> bool:
        """Whether it is a multiple of the lanes in the first lane, and grows by one from lane to lane."""
        sum_ = linear(expr)
        return (
            not sum_.others
            and sum_.steps.get(lane, 0) == 1
            and sum_.constant % lanes == 0
            and all(step % lanes == 0 for var, step in sum_.steps.items() if not var.same_as(lane))
        )

    def first(expr: tvm.ir.Expr) -> tvm.ir.Expr:
        return substitute(expr, {lane: number(0)})

    def compared(node: tirx.LT) -> tvm.ir.Expr:
        if str(node.a.ty.dtype) != "int64":
            return node
        low, high = (node.a, node.b) if isinstance(node, (tirx.LT, tirx.LE)) else (node.b, node.a)
        strict = number(int(isinstance(node, (tirx.LT, tirx.GT))))
        # Both say low < high, or low <= high; of a number that is `whole` the sign is the same in all lanes.
        rising, falling = high - low - strict, low - high - (number(1) - strict)
        if whole(rising):
            return first(rising) >= number(0)
        return first(falling) < number(0) if whole(falling) else node

    def divided(node: tirx.FloorDiv | tirx.FloorMod) -> tvm.ir.Expr:
        if not isinstance(node.b, tirx.IntImm) or int(node.b) % lanes or not whole(node.a):
            return node
        base = type(node)(first(node.a), node.b)
        return base if isinstance(node, tirx.FloorDiv) else base + lane

    spread = substitute(value, {inner: vector * number(lanes) + lane})
    spread = tvm_ffi.structural_map(spread, [(_COMPARISONS, compared), ((tirx.FloorDiv, tirx.FloorMod), divided)])

    def without_neighbours(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        place = offset(load)
        neighbours = linear(place).steps.get(lane, 0) in (0, 1) and not _others_use(place, lane)
        return tirx.const(0, str(load.ty.dtype)) if neighbours else load

    rest = tvm_ffi.structural_map(spread, (tvm.ir.TensorLoad, without_neighbours))
    return None if _uses(rest, lane) else (spread, vector, lane)


def _others_use(place: tvm.ir.Expr, var: tvm.ir.Var) -> bool:
    return any(_uses(other, var) for other in linear(place).others)


def _uses(expr: tvm.ir.Expr, var: tvm.ir.Var) -> bool:
    return any(found.same_as(var) for found in variables(expr))
