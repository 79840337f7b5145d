"""Recognises the convolution that Winograd's transforms are for: 3 × 3, of stride and dilation 1, of one group."""

from __future__ import annotations

import dataclasses
import math

import tvm
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules.cpu.winograd.transforms import WINDOW
from tvmbridge.schedules.loops.expressions import chooses, constant, is_choice, loads, number, substitute
from tvmbridge.schedules.loops.indices import linear
from tvmbridge.schedules.loops.stages import Axis, Stage, stores_at_its_axes
from tvmbridge.schedules.loops.tail import reads_each_once
from tvmbridge.schedules.reading.product import Product, read_product


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One kernel as a convolution of an image that is 0 outside of some rows and columns.

    product: the same kernel as a product, of which the sum, its tail and the weight are taken.
    batch, rows, columns: axes of the output; its channels are the product's column axis.
    channels: the input's.
    inside: the rows and the columns of the padded image that are no padding.
    weight: which parameter; (3, 3, channels, output channels).
    """

    product: Product
    batch: Axis
    rows: Axis
    columns: Axis
    channels: Axis
    inside: tuple[range, range]
    weight: int
    _value: tvm.ir.Expr
    _at: tuple[tvm.ir.Var, tvm.ir.Var, tvm.ir.Var, tvm.ir.Var]

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.product.columns

    def grid(self, tile: int) -> tuple[int, int]:
        """Tiles of that many outputs along each axis in one image: down, across; the last ones may stand over."""
        return -(-self.rows.extent // tile), -(-self.columns.extent // tile)

    def tiles(self, tile: int) -> int:
        """Tiles of all images."""
        return self.batch.extent * math.prod(self.grid(tile))

    def pixel(self, *at: tvm.ir.Expr) -> tvm.ir.Expr:
        """The value at (image, row, column, channel) of the padded image; where it is no padding."""
        return substitute(self._value, dict(zip(self._at, at, strict=True)))


def read_convolution(kernel: Kernel) -> Convolution | None:
    """The kernel as a convolution for Winograd; None where it is something else."""
    product = read_product(kernel)
    if product is None or product.constant is None or product.groups != 1 or len(product.pads) > 1:
        return None
    main = product.main
    if product.tail is not None and not reads_each_once(main, product.tail):
        return None
    if len(main.spatial) != 4 or [axis.extent for axis in main.reduction[:-1]] != [WINDOW, WINDOW]:
        return None
    batch, rows, columns, outputs = main.spatial
    down, across, channels = main.reduction
    (left,), (right,) = loads(product.left), loads(product.right)
    if not product.right.same_as(right) or not _is(right, (down,), (across,), (channels,), (outputs,)):
        return None
    if not _is(left, (batch,), (rows, down), (columns, across), (channels,)):
        return None
    if any(str(buffer.dtype) != "float32" for buffer in (left.source, right.source, main.buffer)):
        return None
    at = (batch.var, rows.var, columns.var, channels.var)
    if not product.pads:
        inside = (range(rows.extent + WINDOW - 1), range(columns.extent + WINDOW - 1))
        value = substitute(product.left, {down.var: number(0), across.var: number(0), outputs.var: number(0)})
    else:
        padded = _padded(product.pads[0]) if product.left.same_as(left) else None
        if padded is None:
            return None
        value, inside = padded
        at = tuple(axis.var for axis in product.pads[0].spatial)
    return Convolution(product, batch, rows, columns, channels, inside, product.constant, value, at)


def _is(load: tvm.ir.TensorLoad, *sums: tuple[Axis, ...]) -> bool:
    """Whether each index is the sum of these axes; of an axis of one step it does not matter."""

    def matches(index: tvm.ir.Expr, axes: tuple[Axis, ...]) -> bool:
        sum_ = linear(index)
        single = {axis.var for axis in axes if axis.extent == 1}
        taken = {var: step for var, step in sum_.steps.items() if var not in single}
        return not sum_.others and sum_.constant == 0 and taken == {a.var: 1 for a in axes if a.var not in single}

    return len(load.indices) == len(sums) and all(map(matches, load.indices, sums))


def _padded(pad: Stage) -> tuple[tvm.ir.Expr, tuple[range, range]] | None:
    """What a stage that pads rows and columns with 0 copies, and which rows and columns; None where it does more."""
    if len(pad.spatial) != 4 or not stores_at_its_axes(pad) or not is_choice(pad.value):
        return None
    condition, value, outside = pad.value.args
    if chooses(value) or constant(outside) != 0:
        return None
    bounds = {axis.var: range(axis.extent) for axis in pad.spatial}
    for part in _conjuncts(condition):
        if isinstance(part, tirx.LT | tirx.LE):
            smaller, larger, strict = part.a, part.b, isinstance(part, tirx.LT)
        elif isinstance(part, tirx.GT | tirx.GE):
            smaller, larger, strict = part.b, part.a, isinstance(part, tirx.GT)
        else:
            return None
        sum_ = linear(smaller - larger)  # and strict, at most 0
        if sum_.others or len(sum_.steps) != 1:
            return None
        ((var, step),) = sum_.steps.items()
        if abs(step) != 1 or var not in bounds:
            return None
        above = sum_.constant + strict
        known = bounds[var]
        first, end = (known.start, min(known.stop, 1 - above)) if step == 1 else (max(known.start, above), known.stop)
        bounds[var] = range(first, max(first, end))
    batch, rows, columns, channels = (bounds[axis.var] for axis in pad.spatial)
    whole = all(len(r) == axis.extent for r, axis in zip((batch, channels), pad.spatial[::3], strict=True))
    return (value, (rows, columns)) if whole else None


def _conjuncts(condition: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]
