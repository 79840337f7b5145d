"""Products of float16 on a GPU's tensor cores, summed in float32: the tiles of `contraction`, multiplied by warps."""

from __future__ import annotations

import dataclasses
import itertools

import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.lowering.precision import HALF
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.gpu.contraction import fitting_product, read_fitting
from tvmbridge.schedules.gpu.contraction.costs import estimate, sensible_splits
from tvmbridge.schedules.gpu.contraction.depth import cut_depth
from tvmbridge.schedules.gpu.contraction.kernel import ProductKernel
from tvmbridge.schedules.gpu.launch import SHARED_BYTES, WARP
from tvmbridge.schedules.gpu.tensor_cores.fragments import PADDING, SIDE, Fragments, WarpTile
from tvmbridge.schedules.half_values import as_half
from tvmbridge.schedules.loops.emit import with_body
from tvmbridge.schedules.reading.product import Product
from tvmbridge.targets import Target
from tvmbridge.targets.gpu_architectures import GpuLimits, smallest_limits

# (rows, columns, rows of a warp, columns of a warp)
_TILES = (
    (128, 128, 64, 32),
    (128, 64, 32, 32),
    (64, 128, 32, 32),
    (64, 64, 32, 32),
    (64, 64, 32, 16),
    (64, 32, 32, 16),
    (32, 64, 16, 32),
    (32, 32, 16, 16),
    (16, 128, 16, 32),
    (16, 64, 16, 16),
)
_DEPTHS = (16, 32, 64)
_FEWEST = 8  # rows, columns: with fewer, over half of a fragment is nothing
_MULTIPLY_ADDS = 512  # a cycle of a multiprocessor: half of what an A100's tensor cores can (NVIDIA's data sheet)
_REGISTERS = 64  # of a thread besides its sums


def _half(value: tvm.ir.Expr) -> tvm.ir.Expr | None:
    """The float16 expression that the factor is, or is the float32 of; None where it is neither."""
    return value if str(value.ty.dtype) == HALF else as_half(value)


def _fits(kernel: Kernel, _target: Target) -> bool:
    product = fitting_product(kernel)
    if product is None or product.dtype not in ("float16", "float32"):
        return False
    return _half(product.left) is not None and _half(product.right) is not None


def _pays(kernel: Kernel, _target: Target) -> bool:
    product = read_fitting(kernel)
    return product.rows >= _FEWEST and product.columns >= _FEWEST and product.depth >= SIDE


def _candidates(product: Product) -> list[tuple[WarpTile, int]]:
    tiles = [WarpTile(*sizes, depth) for sizes, depth in itertools.product(_TILES, _DEPTHS)]
    fitting = [tile for tile in tiles if _shared_bytes(tile) <= SHARED_BYTES and _is_sensible(tile, product)]
    return [
        (tile, splits)
        for tile in fitting or tiles[-3:-2]
        for splits in sensible_splits(cut_depth(product.main.reduction, tile.depth).steps)
    ]


def _shared_bytes(tile: WarpTile) -> int:
    wider = max(tile.rows, tile.columns)
    operands = 2 * 2 * (wider + PADDING) * (tile.depth + PADDING)
    return operands + 4 * tile.warps * SIDE * tile.warp_columns


def _is_sensible(tile: WarpTile, product: Product) -> bool:
    wasteful = (tile.rows >= 2 * product.rows and tile.rows > SIDE) or (
        tile.columns >= 2 * product.columns and tile.columns > 2 * SIDE
    )
    return not wasteful and (tile.depth < 2 * product.depth or tile.depth == SIDE)


def _guess(kernel: Kernel, target: Target) -> Config:
    product = read_fitting(kernel)
    limits = smallest_limits(target.architectures)
    return _config(*min(_candidates(product), key=lambda candidate: _estimate(product, limits, *candidate)))


def _estimate(product: Product, limits: GpuLimits, tile: WarpTile, splits: int) -> float:
    return estimate(
        product,
        limits,
        rows=tile.rows,
        columns=tile.columns,
        steps=cut_depth(product.main.reduction, tile.depth).steps,
        splits=splits,
        threads=tile.warps * WARP,
        registers=tile.warp_rows * tile.warp_columns // WARP + _REGISTERS,
        step_cycles=tile.rows * tile.columns * tile.depth / _MULTIPLY_ADDS,
        step_bytes=2 * (tile.rows + tile.columns) * tile.depth,
    )


def _config(tile: WarpTile, splits: int) -> Config:
    return {**dataclasses.asdict(tile), "splits": splits}


def _configs(kernel: Kernel, _target: Target) -> list[Config]:
    return [_config(*candidate) for candidate in _candidates(read_fitting(kernel))]


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    product = read_fitting(kernel)
    left, right = _half(product.left), _half(product.right)
    assert left is not None and right is not None
    tile = WarpTile(*(int(config[field.name]) for field in dataclasses.fields(WarpTile)))
    depth = cut_depth(product.main.reduction, tile.depth)
    written = ProductKernel(product, left, right, depth, Fragments(tile), int(config["splits"])).write()
    return Scheduled(with_body(kernel.function, written))


TEMPLATE = Template(
    name="tensor_cores", version=1, rank=20, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule, pays=_pays
)
