"""The first phase: Bᵀ d B of every tile, a vector of channels at a time. Padding is no copy, it is never loaded."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.winograd.plan import Plan, Scratch, Spot, over_tiles
from tvmbridge.schedules.loops.emit import loop, scratch, sequence, store, vectorized
from tvmbridge.schedules.loops.expressions import number
from tvmbridge.schedules.loops.shares import Share

# (row, column) of a tile's inputs, and the lane → the input.
_Pixel = Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]


def transform_inputs(plan: Plan, memory: Scratch, block: tvm.ir.Expr, share: Share | None) -> tirx.Stmt:
    """Transform the tiles of a block, or one task's share of them."""
    return over_tiles(plan, block, plan.depth.count, share, lambda spot: _tile(plan, memory, spot))


def _tile(plan: Plan, memory: Scratch, spot: Spot) -> tirx.Stmt:
    size, convolution = plan.transform.size, plan.convolution
    channel = plan.depth.start(spot.vector)
    # A buffer a row: TVM keeps small ones on the stack. In one large one they made the whole kernel a tenth slower.
    half, made = zip(*(scratch([size, plan.lanes], "float32", "half") for _ in range(size)), strict=True)

    def inner(i: tvm.ir.Expr, j: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        return convolution.pixel(spot.image, spot.top + i, spot.left + j, channel + lane)

    def at_border(i: tvm.ir.Expr, j: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        places = zip((spot.top + i, spot.left + j), convolution.inside, strict=True)
        bounds = [(place >= number(inside.start), place < number(inside.stop)) for place, inside in places]
        return tirx.if_then_else(tirx.all(*sum(bounds, ())), inner(i, j, lane), tirx.const(0.0, "float32"))

    columns, inside = _columns(plan, half, inner), _inside(plan, spot)
    if inside is not None:
        columns = tirx.IfThenElse(inside, columns, _columns(plan, half, at_border))
    return sequence(*made, columns, *(_row(plan, memory, spot, i, half[i]) for i in range(size)))


def _inside(plan: Plan, spot: Spot) -> tvm.ir.Expr | None:
    """Whether none of a tile's inputs is padding; None where that holds for all tiles."""
    tile, size, found = plan.transform.tile, plan.transform.size, []
    grid = plan.convolution.grid(tile)
    for first, inside, tiles in zip((spot.top, spot.left), plan.convolution.inside, grid, strict=True):
        if inside.start > 0:
            found.append(first >= number(inside.start))
        if inside.stop < (tiles - 1) * tile + size:
            found.append(first + number(size) <= number(inside.stop))
    return tirx.all(*found) if found else None


def _row(plan: Plan, memory: Scratch, spot: Spot, i: int, half: tvm.ir.Var) -> tirx.Stmt:
    """Transform one row of a tile whose columns are."""
    size = plan.transform.size

    def along(lane: tvm.ir.Expr) -> tirx.Stmt:
        values = plan.transform.input([tirx.BufferLoad(half, [number(j), lane]) for j in range(size)])
        places = [[number(i * size + j), spot.strip, spot.vector, spot.tile, lane] for j in range(size)]
        return sequence(*(store(memory.inputs, *pair) for pair in zip(places, values, strict=True)))

    return vectorized(plan.lanes, along)


def _columns(plan: Plan, half: tuple[tvm.ir.Var, ...], pixel: _Pixel) -> tirx.Stmt:
    """Transform each column of a tile."""
    size, lanes = plan.transform.size, plan.lanes
    column, made = scratch([size, lanes], "float32", "column")

    def of_column(j: tvm.ir.Expr) -> tirx.Stmt:
        def load(lane: tvm.ir.Expr) -> tirx.Stmt:
            return sequence(*(store(column, [number(i), lane], pixel(number(i), j, lane)) for i in range(size)))

        def down(lane: tvm.ir.Expr) -> tirx.Stmt:
            values = plan.transform.input([tirx.BufferLoad(column, [number(i), lane]) for i in range(size)])
            return sequence(*(store(half[i], [j, lane], value) for i, value in enumerate(values)))

        return sequence(made, vectorized(lanes, load), vectorized(lanes, down))

    return loop(size, of_column)
