"""Writes a piece of a map as one run of elements: a vector of neighbours for each thread, or some of them."""

from __future__ import annotations

import math

import tvm
from tvm import tirx

from tvmbridge.schedules.gpu.lanes import in_lane, widest_lanes
from tvmbridge.schedules.gpu.launch import guarded, launch
from tvmbridge.schedules.loops.emit import store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import number, substitute
from tvmbridge.schedules.loops.indices import at, coordinates
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.reading.pieces import Piece


def write_flat(piece: Piece, threads: int, widest: int, items: int) -> tirx.Stmt:
    """Blocks of so many threads, each of which computes `items` vectors of up to `widest` elements."""
    *outer, inner = piece.axes or (Axis(tvm.ir.Var("single", "int64"), 1),)
    lanes = widest_lanes([piece.value], [piece.offset], inner.var, inner.extent, widest) if piece.axes else 1
    vectors = Axis(tvm.ir.Var("vector", "int64"), inner.extent // lanes)
    total = math.prod(axis.extent for axis in outer) * vectors.extent
    # Of a small piece a block is no larger, but for whole warps.
    threads = min(threads, -(-total // 32) * 32)
    items = min(items, -(-total // threads))

    def vector(index: tvm.ir.Expr) -> tirx.Stmt:
        places = coordinates(index, [*outer, vectors])
        start = places.pop(vectors.var)

        def element(lane: tvm.ir.Expr) -> tirx.Stmt:
            value = in_lane(piece.value, inner.var, lanes, start, lane)
            place = substitute(piece.offset, {inner.var: start * number(lanes) + lane})
            return store(piece.buffer, at(piece.buffer, substitute(place, places)), substitute(value, places))

        return vectorized(lanes, element)

    def body(block: tvm.ir.Var, thread: tvm.ir.Var) -> tirx.Stmt:
        def item(i: tvm.ir.Expr) -> tirx.Stmt:
            index = (block * number(items) + i) * number(threads) + thread
            whole = total % (threads * items) == 0
            return guarded(None if whole else index < number(total), vector(index))

        return unrolled(items, item)

    return launch(-(-total // (threads * items)), threads, body)
