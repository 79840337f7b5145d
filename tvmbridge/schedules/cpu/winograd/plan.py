"""A config made whole: how tiles and channels are cut, what lies between the phases, loops over a block's tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.schedules.cpu.winograd.convolution import Convolution
from tvmbridge.schedules.cpu.winograd.transforms import Transform
from tvmbridge.schedules.loops.emit import scratch
from tvmbridge.schedules.loops.expressions import Values, number
from tvmbridge.schedules.loops.indices import unravel
from tvmbridge.schedules.loops.shares import Share, shared_nest
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.loops.tiling import Blocks, Tiles


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one convolution is computed.

    depth, vectors: the input's and the output's channels in vectors.
    strips: all tiles of all images, cut into what is multiplied at a time: the rows of a register tile.
    panel: the vectors of output channels, cut into those of a register tile.
    block: strips that go through all three phases before the next ones do.
    unroll: steps of the depth in one step of its loop; divides the lanes.
    """

    convolution: Convolution
    transform: Transform
    depth: Blocks
    vectors: Blocks
    strips: Tiles
    panel: Tiles
    block: int
    unroll: int

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.vectors.size

    @property
    def blocks(self) -> int:
        """How many there are; the last one may have fewer strips."""
        return -(-self.strips.count // self.block)

    def scratch(self) -> Scratch:
        """The buffers of one block."""
        points, lanes, tiles = self.transform.points, self.lanes, self.strips.size
        inputs, made_inputs = scratch([points, self.block, self.depth.count, tiles, lanes], "float32", "inputs")
        products, made_products = scratch([self.block, tiles, self.vectors.count, points, lanes], "float32", "products")
        return Scratch(inputs, products, (made_inputs, made_products))


@dataclasses.dataclass(frozen=True)
class Scratch:
    """What lies between the phases of a block.

    inputs: transformed, as (point, strip, vector of channels, tile, lane): each product reads one stream of it.
    products: (strip, tile, vector of output channels, point, lane): each output transform reads one stream of it.
    made: the statements that make them.
    """

    inputs: tvm.ir.Var
    products: tvm.ir.Var
    made: tuple[tirx.Stmt, ...]


@dataclasses.dataclass(frozen=True)
class Spot:
    """One vector of channels of one tile.

    strip: of the block. tile: of the strip. image, top, left: where the tile's first output lies.
    """

    strip: tvm.ir.Expr
    tile: tvm.ir.Expr
    vector: tvm.ir.Expr
    image: tvm.ir.Expr
    top: tvm.ir.Expr
    left: tvm.ir.Expr


def over_tiles(
    plan: Plan, block: tvm.ir.Expr, vectors: int, share: Share | None, body: Callable[[Spot], tirx.Stmt]
) -> tirx.Stmt:
    """`body` for each of some vectors of every tile of a block, or for one task's share of them."""
    strips, convolution, size = plan.strips, plan.convolution, plan.transform.tile
    extents = {"strip": plan.block, "tile": strips.size, "vector": vectors}
    axes = [Axis(tvm.ir.Var(name, "int64"), extent) for name, extent in extents.items()]

    def at(values: Values) -> tirx.Stmt:
        strip, tile, vector = (values[axis.var] for axis in axes)
        index = block * number(plan.block) + strip
        first, exists = index * number(strips.size), []
        if strips.large < strips.count:
            first = first - tirx.max(number(0), index - number(strips.large))
            exists.append(tirx.any(index < number(strips.large), tile < number(strips.size - 1)))
        if strips.count % plan.block:
            exists.append(index < number(strips.count))
        image, down, across = unravel(first + tile, [convolution.batch.extent, *convolution.grid(size)])
        found = body(Spot(strip, tile, vector, image, down * number(size), across * number(size)))
        return tirx.IfThenElse(tirx.all(*exists), found, None) if exists else found

    return shared_nest(axes, at, share)
