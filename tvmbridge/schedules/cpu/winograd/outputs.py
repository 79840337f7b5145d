"""The third phase: Aᵀ m A of every tile, what was fused behind the convolution, and the store of what is there."""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.winograd.plan import Plan, Scratch, Spot, over_tiles
from tvmbridge.schedules.loops.costs import operations
from tvmbridge.schedules.loops.emit import loop, scratch, sequence, store, unrolled, vectorized
from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.shares import Share
from tvmbridge.schedules.loops.tail import HEAVY, store_result


def transform_outputs(plan: Plan, memory: Scratch, block: tvm.ir.Expr, share: Share | None) -> tirx.Stmt:
    """Transform the tiles of a block and store them, or one task's share of them."""
    return over_tiles(plan, block, plan.vectors.count, share, lambda spot: _tile(plan, memory, spot))


def _tile(plan: Plan, memory: Scratch, spot: Spot) -> tirx.Stmt:
    size, tile, lanes = plan.transform.size, plan.transform.tile, plan.lanes
    half, made = zip(*(scratch([size, lanes], "float32", "half") for _ in range(tile)), strict=True)

    def of_column(j: tvm.ir.Expr) -> tirx.Stmt:
        def down(lane: tvm.ir.Expr) -> tirx.Stmt:
            points = [number(i * size) + j for i in range(size)]
            place = [spot.strip, spot.tile, spot.vector]
            values = plan.transform.output([tirx.BufferLoad(memory.products, [*place, p, lane]) for p in points])
            return sequence(*(store(half[i], [j, lane], value) for i, value in enumerate(values)))

        return vectorized(lanes, down)

    extents = (plan.convolution.rows.extent, plan.convolution.columns.extent)
    firsts = (spot.top, spot.left)
    whole = [first + number(tile) <= number(n) for first, n in zip(firsts, extents, strict=True) if n % tile]

    def rows(all_there: bool) -> tirx.Stmt:
        return sequence(*(_row(plan, spot, i, half[i], all_there) for i in range(tile)))

    if not whole:
        stored = rows(True)
    elif _is_heavy(plan):  # whose code is long: one for both, at the price of a few branches
        stored = rows(False)
    else:
        stored = tirx.IfThenElse(tirx.all(*whole), rows(True), rows(False))
    return sequence(*made, loop(size, of_column), stored)


def _is_heavy(plan: Plan) -> bool:
    tail = plan.convolution.product.tail
    return tail is not None and operations(tail.value) >= HEAVY


def _row(plan: Plan, spot: Spot, i: int, half: tvm.ir.Var, whole: bool) -> tirx.Stmt:
    """One row of a tile's outputs. whole: the tile does not stand over the image."""
    tile, lanes, convolution = plan.transform.tile, plan.lanes, plan.convolution
    product = convolution.product
    results, made = scratch([tile, lanes], "float32", "results")
    row, channel = spot.top + number(i), plan.vectors.start(spot.vector)

    def along(lane: tvm.ir.Expr) -> tirx.Stmt:
        values = plan.transform.output([tirx.BufferLoad(half, [number(j), lane]) for j in range(plan.transform.size)])
        return sequence(*(store(results, [number(j), lane], value) for j, value in enumerate(values)))

    def finish(j: tvm.ir.Expr) -> tirx.Stmt:
        def element(lane: tvm.ir.Expr) -> tirx.Stmt:
            at: Values = {
                convolution.batch.var: spot.image,
                convolution.rows.var: row,
                convolution.columns.var: spot.left + j,
                product.column.var: channel + lane,
            }
            return store_result(product.main, product.tail, at, tirx.BufferLoad(results, [j, lane]))

        there = spot.left + j < number(convolution.columns.extent)
        stored = vectorized(lanes, element)
        return stored if whole else tirx.IfThenElse(there, stored, None)

    done = sequence(made, vectorized(lanes, along), (loop if _is_heavy(plan) else unrolled)(tile, finish))
    return done if whole else tirx.IfThenElse(row < number(convolution.rows.extent), done, None)
