"""The first phase: Bᵀ d B of every tile, a vector of channels at a time. Padding is no copy, it is never loaded."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.loops.emit import loop, scratch, sequence, store, vectorized
from tvmbridge.schedules.cpu.loops.expressions import number
from tvmbridge.schedules.cpu.loops.shares import Share
from tvmbridge.schedules.cpu.winograd.plan import Plan, Scratch, Spot, over_tiles

# (row, column) of a tile's inputs, and the lane → the input.
_Pixel = Callable[[tvm.ir.Expr, tvm.ir.Expr, tvm.ir.Expr], tvm.ir.Expr]


def transform_inputs(plan: Plan, memory: Scratch, block: tvm.ir.Expr, share: Share | None) -> tirx.Stmt:
    """Transform the tiles of a block, or one task's share of them."""
    return over_tiles(plan, block, plan.depth.count, share, lambda spot: _tile(plan, memory, spot))


def _tile(plan: Plan, memory: Scratch, spot: Spot) -> tirx.Stmt:
    size, lanes, convolution = plan.transform.size, plan.lanes, plan.convolution
    channel = plan.depth.start(spot.vector)
    # A buffer a row: TVM keeps small ones on the stack. Elsewhere they were an eighth slower for the whole kernel.
    half, made = zip(*(scratch([size, lanes], "float32", "half") for _ in range(size)), strict=True)
    steps, whole = [], []
    for first, inside, tiles in zip(
        (spot.top, spot.left), convolution.inside, convolution.grid(plan.transform.tile), strict=True
    ):
        if inside.start > 0:
            whole.append(first >= number(inside.start))
        if inside.stop < (tiles - 1) * plan.transform.tile + size:
            whole.append(first + number(size) <= number(inside.stop))

    def inner(i: tvm.ir.Expr, j: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        return convolution.pixel(spot.image, spot.top + i, spot.left + j, channel + lane)

    def at_border(i: tvm.ir.Expr, j: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
        bounds = []
        for place, inside in zip((spot.top + i, spot.left + j), convolution.inside, strict=True):
            bounds += [place >= number(inside.start), place < number(inside.stop)]
        return tirx.if_then_else(tirx.all(*bounds), inner(i, j, lane), tirx.const(0.0, "float32"))

    steps.append(_columns(plan, half, inner))
    if whole:
        steps = [tirx.IfThenElse(tirx.all(*whole), steps[0], _columns(plan, half, at_border))]
    for i in range(size):

        def along_row(lane: tvm.ir.Expr, i: int = i) -> tirx.Stmt:
            values = plan.transform.input([tirx.BufferLoad(half[i], [number(j), lane]) for j in range(size)])
            return sequence(
                *(
                    store(memory.inputs, [number(i * size + j), spot.strip, spot.vector, spot.tile, lane], value)
                    for j, value in enumerate(values)
                )
            )

        steps.append(vectorized(lanes, along_row))
    return sequence(*made, *steps)


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
