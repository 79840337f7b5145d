"""matmul and channels-last conv2d on a CPU: an outer-product microkernel whose accumulators stay in registers.

One tile of `mr` rows × `nr` columns of the output is accumulated in `mr * nr / lanes` vector registers; the inner loop
loads `nr / lanes` vectors of weights and broadcasts `mr` inputs for `mr * nr / lanes` fused multiply-adds, and what was
fused behind the contraction is applied to the tile before it is stored (the scheme of Goto and van de Geijn, "Anatomy
of High-Performance Matrix Multiplication", 2008). Constant weights are packed in the order in which it reads them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Packing, Scheduled, Template
from tvmbridge.schedules.cpu.loops import blocks, divisors, extent, is_copy
from tvmbridge.targets import Target

_PARALLEL_MULTIPLY_ADDS = 1 << 17  # about 5 µs of one core's work: below it a second thread costs more than it brings
_CACHE_BYTES = 1 << 19  # half of a typical second-level cache: what a panel of weights may fill


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The contraction as the microkernel sees it: batch × rows × columns, summed over `depth`."""

    conv: bool
    pointwise: bool
    batch: int
    rows: int
    width: int  # rows of the innermost spatial axis: of a pointwise conv2d, `rows` is several of them
    columns: int
    depth: int  # innermost reduction axis only: the one that is unrolled
    window: int  # the other reduction axes, multiplied
    bits: int
    packable: int | None  # the parameter that holds the weights, where they are constant


def _open(kernel: Kernel) -> tuple[Schedule, SBlockRV | None]:
    """A schedule and its contraction. TOPI writes even a padding by nothing as a copy of the input: that is gone."""
    schedule = Schedule(tvm.IRModule({"main": kernel.function}), debug_mask="none")
    found = [b for b in blocks(schedule) if schedule.get(b).name_hint.startswith(("matmul", "conv2d_nhwc"))]
    if len(found) != 1:
        return schedule, None
    for producer in schedule.get_producers(found[0]):
        if is_copy(schedule, producer):
            schedule.compute_inline(producer)
    return schedule, found[0]


def _shape(kernel: Kernel) -> _Shape | None:
    schedule, block = _open(kernel)
    if block is None or sum(not schedule.get_consumers(b) for b in blocks(schedule)) != 1:
        return None
    body = schedule.get(block)
    conv = body.name_hint.startswith("conv2d")
    extents = [extent(schedule, loop) for loop in schedule.get_loops(block)]
    reductions = 3 if conv else 1
    kinds = [int(axis.iter_type) for axis in body.iter_vars]
    spatial = extents[:-reductions]
    if 0 in extents or len(spatial) < 2 or kinds != [0] * len(spatial) + [2] * reductions or len(body.reads) != 2:
        return None
    if math.prod(int(axis) for axis in kernel.function.params[-1].shape) != math.prod(spatial):
        return None  # what is fused behind it repeats the result: the contraction would be computed for each repetition
    weights = body.reads[1].source
    index = next((i for i, tensor in enumerate(kernel.function.params) if tensor.same_as(weights)), None)
    constant = index in kernel.constants and len(weights.shape) == (4 if conv else 2)
    pointwise = conv and extents[4] == extents[5] == 1 and not schedule.get_producers(block)
    rows = spatial[-3] * spatial[-2] if pointwise else spatial[-2]
    return _Shape(
        conv=conv,
        pointwise=pointwise,
        batch=math.prod(spatial) // (rows * spatial[-1]),
        rows=rows,
        width=spatial[-2],
        columns=spatial[-1],
        depth=extents[-1],
        window=math.prod(extents[len(spatial) : -1]),
        bits=tvm.DataType(weights.dtype).bits if str(weights.dtype).startswith("float") else 0,
        packable=index if constant else None,
    )


def _fits(kernel: Kernel, _target: Target) -> bool:
    shape = _shape(kernel)
    return shape is not None and shape.bits in (16, 32, 64)


def _lanes(shape: _Shape, target: Target) -> int:
    """The widest power of two within a vector register that divides the columns."""
    widest = target.vector_bits // shape.bits
    return next(lanes for lanes in (16, 8, 4, 2, 1) if lanes <= widest and shape.columns % lanes == 0)


def _tiles(shape: _Shape, target: Target) -> list[tuple[int, int]]:
    """Every (mr, nr) that divides the output and whose accumulators, weights and one input fit the registers."""
    lanes = _lanes(shape, target)
    return [
        (mr, vectors * lanes)
        for vectors in range(1, 5)
        for mr in divisors(shape.rows, 14)
        if shape.columns % (vectors * lanes) == 0
        and (mr + 1) * vectors + 1 <= target.vector_registers
        and (shape.width % mr == 0 or mr % shape.width == 0)  # else a tile would be more than its rows
    ]


def _row_tiles(shape: _Shape, mr: int, largest: int) -> list[int]:
    """How many tiles of rows may share a panel of weights, ascending.

    Where several rows of the image are fused, a panel that ends inside one (its rows divide the width) gives an index
    that TVM cannot show to be affine, and so does not vectorise.
    """
    counts = divisors(shape.rows // mr, largest)
    if not shape.pointwise or mr == 1:
        return counts
    whole_row = {shape.width // mr} if shape.width % mr == 0 else set()
    return [
        tiles
        for tiles in sorted({*counts, *whole_row})
        if mr * tiles % shape.width == 0 or shape.width % (mr * tiles) != 0
    ]


def _worth(tile: tuple[int, int], lanes: int) -> float:
    """Multiply-adds per load, and a little for many accumulators: they hide the latency of the multiply-add."""
    mr, vectors = tile[0], tile[1] // lanes
    return mr * vectors / (mr + vectors) + 0.05 * mr * vectors


def _guess(kernel: Kernel, target: Target) -> Config:
    shape = _shape(kernel)
    assert shape is not None
    lanes = _lanes(shape, target)
    mr, nr = max(_tiles(shape, target), key=lambda tile: _worth(tile, lanes))
    weight_bytes = shape.window * shape.depth * shape.columns * shape.bits // 8
    return {
        "mr": mr,
        "nr": nr,
        "unroll": divisors(shape.depth, 4)[-1],
        "row_tiles": _row_tiles(shape, mr, 4)[-1],
        "columns_outer": weight_bytes > _CACHE_BYTES,
        "packed": shape.packable is not None,
    }


def _configs(kernel: Kernel, target: Target) -> list[Config]:
    shape = _shape(kernel)
    assert shape is not None
    lanes = _lanes(shape, target)
    tiles = sorted(_tiles(shape, target), key=lambda tile: -_worth(tile, lanes))[:12]
    return [
        {"mr": mr, "nr": nr, "unroll": unroll, "row_tiles": row_tiles, "columns_outer": outer, "packed": packed}
        for (mr, nr), unroll, outer, packed in itertools.product(
            tiles, divisors(shape.depth, 8), (False, True), (True, False) if shape.packable is not None else (False,)
        )
        for row_tiles in _row_tiles(shape, mr, 8)
    ]


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    shape = _shape(kernel)
    assert shape is not None
    mr, nr, lanes = int(config["mr"]), int(config["nr"]), _lanes(shape, target)
    schedule, main = _open(kernel)
    assert main is not None
    pads = list(schedule.get_producers(main))
    tail = _inline_tail(schedule, main)
    packings: tuple[Packing, ...] = ()
    if config["packed"]:
        assert shape.packable is not None
        packings = (Packing(shape.packable, nr),)
        schedule.transform_layout(main, ("read", 1), lambda *axes: (axes[-1] // nr, *axes[:-1], axes[-1] % nr))

    *batch, rows, columns = schedule.get_loops(tail)
    if shape.pointwise:
        rows, batch = schedule.fuse(batch[-1], rows), batch[:-1]
    row_outer, row = schedule.split(rows, [None, mr])
    column_outer, column = schedule.split(columns, [None, nr])
    row_block, row_tile = schedule.split(row_outer, [None, int(config["row_tiles"])])
    blocked = [column_outer, *batch, row_block] if config["columns_outer"] else [*batch, row_block, column_outer]
    schedule.reorder(*blocked, row_tile, row, column)
    if shape.batch * shape.rows * shape.columns * shape.depth * shape.window >= _PARALLEL_MULTIPLY_ADDS:
        schedule.parallel(schedule.fuse(*blocked))

    schedule.compute_at(main, row_tile, preserve_unit_loops=True)
    schedule.set_scope(main, 0, "local")  # unrolled below, so that LLVM keeps the tile in registers
    reductions = 3 if shape.conv else 1
    loops = schedule.get_loops(main)
    tile_row, tile_column, reduction = loops[-reductions - 2], loops[-reductions - 1], loops[-reductions:]
    if shape.pointwise:
        tile_row = schedule.fuse(loops[-reductions - 3], tile_row)
    vectors, vector = schedule.split(tile_column, [None, lanes])
    depth_outer, depth = schedule.split(reduction[-1], [None, int(config["unroll"])])
    schedule.reorder(*reduction[:-1], depth_outer, depth, tile_row, vectors, vector)
    for loop in (depth, tile_row, vectors):
        schedule.unroll(loop)
    schedule.vectorize(vector)
    clear = schedule.decompose_reduction(main, reduction[0] if reductions > 1 else depth_outer)
    _unroll_tile(schedule, *schedule.get_loops(clear)[-3:])
    tail_vectors, tail_vector = schedule.split(column, [None, lanes])
    _unroll_tile(schedule, row, tail_vectors, tail_vector)
    for pad in pads:
        _schedule_pad(schedule, pad, target.vector_bits // shape.bits)
    return Scheduled(schedule.mod["main"].with_attr("tirx.is_scheduled", True), packings)


def _inline_tail(schedule: Schedule, main: SBlockRV) -> SBlockRV:
    """The block that stores the output: the last element-wise one; where there is none, a copy of the accumulators."""
    kept = {schedule.get(block).name_hint for block in [main, *schedule.get_producers(main)]}
    for block in blocks(schedule):
        if schedule.get_consumers(block) and schedule.get(block).name_hint not in kept:
            schedule.compute_inline(block)
    consumers = schedule.get_consumers(main)
    return consumers[0] if consumers else schedule.cache_write(main, 0, "global")


def _unroll_tile(schedule: Schedule, row: LoopRV, vectors: LoopRV, vector: LoopRV) -> None:
    schedule.unroll(row)
    schedule.unroll(vectors)
    schedule.vectorize(vector)


def _schedule_pad(schedule: Schedule, pad: SBlockRV, lanes: int) -> None:
    batch, y, _x, channels = schedule.get_loops(pad)
    _, vector = schedule.split(channels, [None, divisors(extent(schedule, channels), lanes)[-1]])
    schedule.vectorize(vector)
    schedule.parallel(schedule.fuse(batch, y))


TEMPLATE = Template(
    name="contraction", version=1, rank=10, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule
)
