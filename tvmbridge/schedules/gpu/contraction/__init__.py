"""Products of any shape on a GPU's ordinary arithmetic units: matmul, batched or not, and convolution as a product.

`kernel.py` writes the tiles, `register_tiles.py` how a block multiplies them; here is what can be chosen, and guessed.
"""

from __future__ import annotations

import dataclasses
import itertools

import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.gpu.contraction.costs import ISSUED_LANES, estimate, sensible_splits
from tvmbridge.schedules.gpu.contraction.depth import cut_depth
from tvmbridge.schedules.gpu.contraction.kernel import ProductKernel, sum_dtype
from tvmbridge.schedules.gpu.contraction.register_tiles import RegisterTile, RegisterTiles
from tvmbridge.schedules.gpu.launch import MAX_THREADS, SHARED_BYTES
from tvmbridge.schedules.loops.emit import with_body
from tvmbridge.schedules.loops.tail import reads_each_once
from tvmbridge.schedules.reading.product import Product, read_product
from tvmbridge.targets import Target
from tvmbridge.targets.gpu_architectures import GpuLimits, smallest_limits

_DTYPES = ("float16", "float32", "float64", "int32", "int64")
# (rows, columns, rows of a thread, columns of a thread)
_TILES = (
    (128, 128, 8, 8),
    (128, 64, 8, 8),
    (64, 128, 8, 8),
    (64, 64, 8, 8),
    (64, 64, 8, 4),
    (64, 64, 4, 4),
    (64, 32, 8, 4),
    (64, 32, 4, 4),
    (32, 64, 4, 8),
    (32, 64, 4, 4),
    (32, 32, 4, 4),
    (128, 16, 4, 4),
    (64, 16, 4, 2),
    (16, 128, 4, 4),
    (16, 64, 4, 4),
    (8, 128, 4, 4),
    (4, 128, 4, 4),
    (2, 128, 2, 4),
    (1, 128, 1, 4),
    (1, 64, 1, 2),
    (1, 32, 1, 1),
)
_DEPTHS, _SLICES = (8, 16, 32, 64), (1, 2, 4, 8, 16)
_INDEX_REGISTERS = 32
_MOST_REGISTERS = 160  # of a thread: more would leave a multiprocessor too few threads to hide latencies
_FEWEST_THREADS, _MOST_SLICED_THREADS = 64, 256
_MOST_TERMS = 32  # written out: of more, ptxas loads so many ahead that sums do not stay in registers


def fitting_product(kernel: Kernel) -> Product | None:
    """The kernel as a product that its blocks can compute; None where it is none."""
    product = read_product(kernel, keep_pads=False)
    if product is None or product.pads or product.dtype not in _DTYPES:
        return None
    return product if product.tail is None or reads_each_once(product.main, product.tail) else None


def read_fitting(kernel: Kernel) -> Product:
    """The kernel, which fits, as a product."""
    product = fitting_product(kernel)
    assert product is not None
    return product


def _tiles(product: Product) -> list[RegisterTile]:
    """The tiles that are no larger than they need be, and whose operands a block's memory holds."""
    found = [
        RegisterTile(*sizes, depth, slices) for sizes, depth, slices in itertools.product(_TILES, _DEPTHS, _SLICES)
    ]
    fitting = [tile for tile in found if _fits_a_block(tile, product) and _is_sensible(tile, product)]
    return fitting or [RegisterTile(*_TILES[-1], _DEPTHS[0], 2)]


def _fits_a_block(tile: RegisterTile, product: Product) -> bool:
    itemsize = tvm.DataType(sum_dtype(product)).bits // 8
    operands = (tile.rows + tile.columns + 8) * tile.depth * itemsize
    exchanged = tile.slices * tile.rows * tile.columns * itemsize if tile.slices > 1 else 0
    return tile.threads <= MAX_THREADS and operands + exchanged <= SHARED_BYTES


def _is_sensible(tile: RegisterTile, product: Product) -> bool:
    small = tile.threads < _FEWEST_THREADS
    terms = tile.depth // tile.slices
    sliced = tile.slices > 1 and (tile.threads > _MOST_SLICED_THREADS or terms < 2)
    wasteful = (tile.rows >= 2 * product.rows and tile.rows > 1) or (
        tile.columns >= 2 * product.columns and tile.columns > _TILES[-1][1]
    )
    deep = tile.depth > _DEPTHS[0] and tile.depth >= 2 * product.depth
    return not (small or sliced or wasteful or deep or terms > _MOST_TERMS or _registers(tile) > _MOST_REGISTERS)


def _candidates(kernel: Kernel) -> list[tuple[RegisterTile, int]]:
    product = read_fitting(kernel)
    return [
        (tile, splits)
        for tile in _tiles(product)
        for splits in sensible_splits(cut_depth(product.main.reduction, tile.depth).steps)
    ]


def _config(tile: RegisterTile, splits: int) -> Config:
    return {**dataclasses.asdict(tile), "splits": splits}


def _guess(kernel: Kernel, target: Target) -> Config:
    product = read_fitting(kernel)
    limits = smallest_limits(target.architectures)
    return _config(*min(_candidates(kernel), key=lambda candidate: _estimate(product, limits, *candidate)))


def _estimate(product: Product, limits: GpuLimits, tile: RegisterTile, splits: int) -> float:
    return estimate(
        product,
        limits,
        rows=tile.rows,
        columns=tile.columns,
        steps=cut_depth(product.main.reduction, tile.depth).steps,
        splits=splits,
        threads=tile.threads,
        registers=_registers(tile),
        step_cycles=_step_cycles(tile, limits.float32_lanes),
        step_bytes=(tile.rows + tile.columns) * tile.depth * tvm.DataType(str(product.left.ty.dtype)).bits // 8,
    )


def _registers(tile: RegisterTile) -> int:
    """Of a thread: sums, what waits for the next step, elements of two terms, indices."""
    waiting = -(-(tile.rows + tile.columns) * tile.depth // tile.threads)
    sums = tile.thread_rows * tile.thread_columns
    return sums + waiting + 2 * (tile.thread_rows + tile.thread_columns) + _INDEX_REGISTERS


def _step_cycles(tile: RegisterTile, lanes: int) -> float:
    """Cycles of a multiprocessor for a step of a block: of issuing its instructions, or of its multiply-adds.

    lanes: multiply-adds of a cycle.
    """
    multiply_adds = tile.rows * tile.columns * tile.depth
    of_term = tile.thread_rows * tile.thread_columns + (tile.thread_rows + tile.thread_columns) / 4 + 2
    loaded = (tile.rows + tile.columns) * tile.depth / tile.threads
    issued = tile.threads * (tile.depth / tile.slices * of_term + 3 * loaded)
    return max(issued / ISSUED_LANES, multiply_adds / lanes)


def _configs(kernel: Kernel, _target: Target) -> list[Config]:
    return [_config(*candidate) for candidate in _candidates(kernel)]


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    product = read_fitting(kernel)
    tile = RegisterTile(*(int(config[field.name]) for field in dataclasses.fields(RegisterTile)))
    multiplier = RegisterTiles(tile, sum_dtype(product), str(product.left.ty.dtype))
    depth = cut_depth(product.main.reduction, tile.depth)
    written = ProductKernel(product, product.left, product.right, depth, multiplier, int(config["splits"])).write()
    return Scheduled(with_body(kernel.function, written))


TEMPLATE = Template(
    name="contraction",
    version=1,
    rank=10,
    fits=lambda kernel, _target: fitting_product(kernel) is not None,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
