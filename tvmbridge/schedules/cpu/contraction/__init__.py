"""Products of any shape on a CPU: matmul, batched matmul, convolutions. Tiles of sums in registers, weights packed.

`product.py` reads the kernel, `microkernel.py` writes its loops; here is what can be chosen, and the best guess.
"""

from __future__ import annotations

import dataclasses
import itertools

import tvm
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.cpu.contraction.columns import columns_of
from tvmbridge.schedules.cpu.contraction.microkernel import BLOCK, Plan, ProductWriter
from tvmbridge.schedules.cpu.map.writing import write_maps
from tvmbridge.schedules.loops.costs import worth_threads
from tvmbridge.schedules.loops.emit import scratch, sequence, with_body
from tvmbridge.schedules.loops.expressions import loads, replace_loads
from tvmbridge.schedules.loops.indices import flat_offset, offset, step
from tvmbridge.schedules.loops.register_tile import fitting_tiles
from tvmbridge.schedules.loops.tail import reads_each_once
from tvmbridge.schedules.loops.tiling import Blocks, cut, lanes_of, within
from tvmbridge.schedules.reading.product import Product, read_product
from tvmbridge.schedules.reading.rows import read_rows
from tvmbridge.targets import Target

_MULTIPLY_ADDS_PER_NS = 16  # of one core in a product so small that threads are in question
_CACHE_BYTES = 1 << 19  # half of a typical second-level cache
_ROW_TILES, _MOST_GUESSED = (1, 2, 3, 4, 8), 4
_PAD_UNROLL = 4  # vectors in one step of the loops that copy an operand with its border
_EVEN = 0.95  # of the cores' time that even shares of the tasks make use of


def _fits(kernel: Kernel, _target: Target) -> bool:
    product = read_product(kernel)
    return (
        product is not None
        and product.dtype in ("float16", "float32", "float64", "int32", "int64")
        and (product.tail is None or reads_each_once(product.main, product.tail))
        and not (_is_vector_product(product) and read_rows(kernel.function))
    )


def _is_vector_product(product: Product) -> bool:
    """Whether vectors are better laid along the depth, as `rows` does: one column, or one row times columns to pack."""
    packed = product.constant is None and product.right_step != 1
    return product.columns == 1 or (product.rows == 1 and packed)


def _read(kernel: Kernel) -> Product:
    product = read_product(kernel)
    assert product is not None
    return product


def _vectors(product: Product, target: Target) -> Blocks:
    return Blocks(product.columns, within(product.columns, lanes_of(target, product.dtype)))


def _tiles(product: Product, target: Target) -> list[tuple[int, int]]:
    return fitting_tiles(product.rows, _vectors(product, target).count, target.vector_registers)


def _best_tile(product: Product, target: Target) -> tuple[int, int]:
    # LLVM loads ahead of the multiply-adds: without an eighth of the registers to spare it puts sums on the stack.
    registers = target.vector_registers * 7 // 8 + 1
    return fitting_tiles(product.rows, _vectors(product, target).count, registers)[0]


def _guess(kernel: Kernel, target: Target) -> Config:
    product = _read(kernel)
    rows, wide = _best_tile(product, target)
    count = _vectors(product, target).count
    item_bytes = tvm.DataType(product.dtype).bits // 8
    return {
        "rows": rows,
        "vectors": wide,
        "unroll": 4,
        "row_tiles": _even_row_tiles(product, cut(product.rows, rows).count, cut(count, wide).count, target.cores),
        "panels": 1,
        "columns_outer": product.depth * product.columns * item_bytes > _CACHE_BYTES,
        "pack_rows": False,
        "pack_columns": product.constant is not None or product.right_step != 1,
    }


def _even_row_tiles(product: Product, tiles: int, panels: int, cores: int) -> int:
    """How many tiles share a panel of columns: as many as leave each core about the same number of tasks."""

    def evenness(row_tiles: int) -> float:
        tasks = product.repeats * panels * -(-tiles // row_tiles)
        return tasks / (-(-tasks // cores) * cores)

    return max(range(1, min(_MOST_GUESSED, tiles) + 1), key=lambda n: (min(evenness(n), _EVEN), n))


def _configs(kernel: Kernel, target: Target) -> list[Config]:
    product = _read(kernel)
    count = _vectors(product, target).count
    tiles = dict.fromkeys([_best_tile(product, target), *_tiles(product, target)[:12]])
    pack_columns = (True,) if product.constant is not None or product.right_step != 1 else (False, True)
    pack_rows = (False, True) if _can_pack_rows(product) else (False,)
    return [
        {
            "rows": rows,
            "vectors": wide,
            "unroll": unroll,
            "row_tiles": row_tiles,
            "panels": panels,
            "columns_outer": outer,
            "pack_rows": packed,
            "pack_columns": pack,
        }
        for (rows, wide), unroll, row_tiles, outer, packed, pack in itertools.product(
            tiles, (2, 4, 8), _ROW_TILES, (False, True), pack_rows, pack_columns
        )
        for panels in ((1, 4, 16) if packed else (1,))
        if row_tiles <= cut(product.rows, rows).count and panels <= cut(count, wide).count
    ]


def _can_pack_rows(product: Product) -> bool:
    depth = product.main.reduction[-1]
    return depth.extent % BLOCK == 0 and step(offset(loads(product.left)[0]), depth, product.main.axes) == 1


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    product = _read(kernel)
    cut_columns = _vectors(product, target)
    plan = Plan(
        rows=cut(product.rows, int(config["rows"])),
        panel=cut(cut_columns.count, int(config["vectors"])),
        unroll=int(config["unroll"]),
        row_tiles=int(config["row_tiles"]),
        panels=int(config["panels"]),
        columns_outer=bool(config["columns_outer"]),
        pack_rows=bool(config["pack_rows"]),
        threads=worth_threads(product.multiply_adds / _MULTIPLY_ADDS_PER_NS, target),
    )
    function = kernel.function
    weight = None if product.constant is None else function.params[product.constant]
    columns, made = columns_of(product, cut_columns, weight, bool(config["pack_columns"]))
    if columns.packing is not None:
        parameters = [columns.buffer if p.same_as(weight) else p for p in function.params]
        function = tirx.PrimFunc(parameters, function.body, function.ret_type, function.attrs)
    product, pads = _with_flat_pads(product, target)
    columns = dataclasses.replace(columns, product=product)
    body = sequence(*pads, made, columns.pack(plan.threads), ProductWriter(product, plan, columns).write())
    return Scheduled(with_body(function, body), () if columns.packing is None else (columns.packing,))


def _with_flat_pads(product: Product, target: Target) -> tuple[Product, list[tirx.Stmt]]:
    """The statements that make the copies with a border, and the product reading those."""
    statements = []
    for pad in product.pads:
        flat, made = scratch([pad.size], str(pad.buffer.dtype), pad.name)
        statements += [made, write_maps([pad], {pad.buffer: flat}, target, _PAD_UNROLL, target.cores)]

        product = dataclasses.replace(product, left=_with_flat_loads(product.left, pad.buffer, flat))
    return product, statements


def _with_flat_loads(expr: tvm.ir.Expr, buffer: tvm.ir.Var, flat: tvm.ir.Var) -> tvm.ir.Expr:
    return replace_loads(expr, buffer, lambda indices: tirx.BufferLoad(flat, [flat_offset(buffer, indices)]))


TEMPLATE = Template(
    name="contraction", version=2, rank=10, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule
)
