"""The second phase: at each point of the transform, tiles × channels times channels × output channels."""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.winograd.plan import Plan, Scratch
from tvmbridge.schedules.loops.emit import block as block_of
from tvmbridge.schedules.loops.emit import loop, sequence, store, unrolled
from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.register_tile import register_tile
from tvmbridge.schedules.loops.shares import Share, shared_nest
from tvmbridge.schedules.loops.stages import Axis


def multiply(plan: Plan, memory: Scratch, weight: tvm.ir.Var, block: tvm.ir.Expr, share: Share | None) -> tirx.Stmt:
    """Multiply the tiles of a block, or what is one task's share of the points and panels of output channels.

    weight: transformed and packed, (vectors, points, channels, lanes).
    """
    point = Axis(tvm.ir.Var("point", "int64"), plan.transform.points)
    panel = Axis(tvm.ir.Var("panel", "int64"), plan.panel.count)

    def of_panel(at: Values) -> tirx.Stmt:
        def strips(vectors: int, vector: tvm.ir.Expr) -> tirx.Stmt:
            def of_strip(strip: tvm.ir.Expr, index: tvm.ir.Expr) -> tirx.Stmt:
                return plan.strips.each(
                    index,
                    lambda tiles, _: _tile(plan, memory, weight, at[point.var], (strip, tiles), (vector, vectors)),
                )

            return block_of(block, plan.block, plan.strips.count, of_strip)

        return plan.panel.each(at[panel.var], strips)

    return shared_nest([point, panel], of_panel, share)


def _tile(
    plan: Plan,
    memory: Scratch,
    weight: tvm.ir.Var,
    point: tvm.ir.Expr,
    rows: tuple[tvm.ir.Expr, int],
    columns: tuple[tvm.ir.Expr, int],
) -> tirx.Stmt:
    """One register tile. rows: the strip, and its tiles. columns: the first vector of output channels, and how many."""
    lanes, unroll = plan.lanes, plan.unroll
    (strip, tiles), (first, vectors) = rows, columns
    sums = register_tile(tiles, vectors, lanes, "float32")

    def add(channel: tvm.ir.Expr, vector: tvm.ir.Expr, place: tvm.ir.Expr) -> tirx.Stmt:
        """One step of the depth: a channel, which lies at `place` in its vector."""

        def term(r: tvm.ir.Expr, v: tvm.ir.Expr, lane: tvm.ir.Expr) -> tvm.ir.Expr:
            left = tirx.BufferLoad(memory.inputs, [point, strip, vector, r, place])
            return left * tirx.BufferLoad(weight, [first + v, point, channel, lane])

        return sums.add(term)

    def steps(vector: tvm.ir.Expr, part: tvm.ir.Expr) -> tirx.Stmt:
        place = part * number(unroll)
        return unrolled(unroll, lambda u: add(vector * number(lanes) + place + u, vector, place + u))

    def keep(r: tvm.ir.Expr, v: tvm.ir.Expr, lane: tvm.ir.Expr) -> tirx.Stmt:
        return store(memory.products, [strip, r, first + v, point, lane], sums.total(r, v, lane))

    whole, rest = divmod(plan.depth.extent, lanes)
    # The last vector of channels overlaps the one before it: of its lanes only the last ones are new.
    last = unrolled(rest, lambda u: add(u + number(whole * lanes), number(whole), u + number(lanes - rest)))
    return sequence(
        *sums.made,
        sums.clear(tirx.const(0.0, "float32")),
        loop(whole, lambda vector: loop(lanes // unroll, lambda part: steps(vector, part))),
        last if rest else None,
        sums.each(keep),
    )
