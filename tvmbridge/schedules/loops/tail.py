"""Where the element-wise stage behind a sum stores each of its elements, reshapes and transposes included."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.emit import store
from tvmbridge.schedules.loops.expressions import Values, loads_of, number, replace_loads, substitute
from tvmbridge.schedules.loops.stages import Stage

HEAVY = 16  # operations of a tail: from so many on it is a loop over a tile's rows instead of written out


def reads_each_once(main: Stage, tail: Stage) -> bool:
    """Whether the tail makes one element of each element of the sum, so that it can be applied to a tile of sums."""
    try:
        return bool(tail_axes(main, tail)) or not tail.spatial
    except ValueError:
        return False


def tail_axes(main: Stage, tail: Stage) -> Values:
    """The tail's axes in terms of the sum's; ValueError where an element of the sum is read other than exactly once."""
    places = [load.indices for load in loads_of(tail.value, main.buffer)]
    if not places or not all(tvm_ffi.structural_equal(place, places[0]) for place in places):
        raise ValueError("the tail reads the sum at several places")
    if tail.size != main.size:
        raise ValueError("the tail repeats or drops elements of the sum")
    permuted = _permuted(tail, places[0], main)
    if permuted is not None:
        return permuted
    forward = tirx.IndexMap([axis.var for axis in tail.spatial], list(places[0]), None)
    try:
        inverse = forward.inverse([number(axis.extent) for axis in tail.spatial])
    except Exception as exc:  # TVM raises several kinds where there is no inverse
        raise ValueError("the tail's places in the sum cannot be inverted") from exc
    stored = inverse.map_indices(list(main.indices))
    return {axis.var: expr for axis, expr in zip(tail.spatial, stored, strict=True)}


def store_result(main: Stage, tail: Stage | None, at: Values, total: tvm.ir.Expr) -> tirx.Stmt:
    """Store what the tail makes of one element's sum, where `at` says where the sum's axes are."""
    if tail is None:
        return store(main.buffer, [substitute(index, at) for index in main.indices], total)
    tail_at = {var: substitute(expr, at) for var, expr in tail_axes(main, tail).items()}
    value = replace_loads(tail.value, main.buffer, lambda _: total)
    return store(tail.buffer, [substitute(index, tail_at) for index in tail.indices], substitute(value, tail_at))


def _permuted(tail: Stage, place: Sequence[tvm.ir.Expr], main: Stage) -> Values | None:
    """The common case: the tail reads the sum at its own axes, perhaps in another order."""
    found: Values = {axis.var: number(0) for axis in tail.spatial if axis.extent == 1}
    for index, stored in zip(place, main.indices, strict=True):
        if isinstance(index, tvm.ir.Var):
            found[index] = stored
        elif not isinstance(index, tirx.IntImm):
            return None
    return found if len(found) == len(tail.spatial) else None
