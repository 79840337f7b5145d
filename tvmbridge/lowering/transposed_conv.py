"""Transposed convolution as one matrix product and one kernel that adds up, for each output, the taps that hit it.

TVM's own definition spreads the input out with zeros between and multiplies with all of them: stride² times the work.
Here every input row is multiplied once with all taps, (N·H·W, C) × (C, taps·F), and an output at position o of an axis
sums the taps k of the inputs q for which q * stride + k * dilation = o + padding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import tvm
from tvm import relax, te

from tvmbridge.lowering.layouts import Laid, Layouts, known_shape, permuted


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One spatial axis: extents of input, kernel and output, and how they lie on each other."""

    given: int
    taps: int
    made: int
    stride: int
    dilation: int
    before: int

    @property
    def hits(self) -> int:
        """How many taps one output has to look at."""
        return -(-self.taps // self.stride) if self.dilation == 1 else self.taps

    def hit(
        self, place: tvm.tirx.PrimExpr, number: tvm.tirx.PrimExpr
    ) -> tuple[tvm.tirx.PrimExpr, tvm.tirx.PrimExpr, list[tvm.tirx.PrimExpr]]:
        """Tap and input of the number-th hit at an output's place, and under which conditions there is one."""
        place = place + self.before
        if self.dilation == 1:  # taps that hit are a stride apart, the first is known
            tap, source = place % self.stride + number * self.stride, place // self.stride - number
            exists = [tap < self.taps] if self.taps % self.stride else []
        else:
            # The place plus a multiple of `up` is as far into a stride as the place less that of the dilation, and no
            # difference: TVM's code generation fails on remainders of differences within vectors.
            up = -self.dilation % self.stride
            reached = place + number * up
            tap, source = number, te.indexdiv(reached, self.stride) - number * ((self.dilation + up) // self.stride)
            exists = [te.indexmod(reached, self.stride) == 0] if self.stride > 1 else []
        return tap, source, [*exists, source >= 0, source < self.given]


def transposed_convolution(layouts: Layouts, call: relax.Call, operands: Sequence[Laid]) -> Laid:
    """The rule of conv1d_transpose, conv2d_transpose and conv3d_transpose: channels last, whatever they were."""
    x, weight = operands
    attrs, groups = call.attrs, int(call.attrs.groups)
    spatial = "DHW"[5 - len(x.order) :]
    order, out_order = (
        tuple(str(layout).index(axis) for axis in f"N{spatial}C")
        for layout in (attrs.data_layout, str(attrs.out_layout) or attrs.data_layout)
    )
    kernel_order = tuple(str(attrs.kernel_layout).index(axis) for axis in f"I{spatial}O")
    batch, *given, channels = permuted(x.shape, order)
    _, *taps, filters = permuted(weight.shape, kernel_order)  # filters of one group
    made = permuted(known_shape(call), out_order)
    padding = [int(entry) for entry in attrs.padding]
    axes = [
        _Axis(given[i], taps[i], made[1 + i], int(attrs.strides[i]), int(attrs.dilation[i]), padding[i])
        for i in range(len(spatial))
    ]
    rows, depth, columns = batch * math.prod(given), channels // groups, math.prod(taps) * filters
    data = layouts.store(x, order, (rows, channels) if groups == 1 else (rows, groups, depth))
    kernel = layouts.store(weight, kernel_order, (channels, columns) if groups == 1 else (groups, depth, columns))
    if groups > 1:
        data = layouts.emit(relax.op.permute_dims(data, [1, 0, 2]))
    if depth == 1 and groups > 1:
        products = layouts.emit(relax.op.multiply(data, kernel))
    else:
        products = layouts.emit(relax.op.matmul(data, kernel, out_dtype=str(call.ty.dtype)))
    summed = layouts.builder.emit_te(
        lambda tensor: _sum_of_hits(tensor, made, axes, filters), products, primfunc_name_hint="sum_of_taps"
    )
    return Laid(summed, out_order, made)


def _sum_of_hits(products: te.Tensor, made: Sequence[int], axes: Sequence[_Axis], filters: int) -> te.Tensor:
    """products: [rows, taps · filters], or one such matrix for each group, rows being batch × input places."""
    numbers = [te.reduce_axis((0, axis.hits), name=f"hit{i}") for i, axis in enumerate(axes)]

    def output(*index: tvm.tirx.PrimExpr) -> tvm.tirx.PrimExpr:
        row, *places, filter_ = index
        tap, conditions = 0, []
        for axis, place, number in zip(axes, places, numbers, strict=True):
            own, source, exists = axis.hit(place, number)
            tap, row = tap * axis.taps + own, row * axis.given + source
            conditions += exists
        if len(products.shape) == 3:
            value = products(filter_ // filters, row, tap * filters + filter_ % filters)
        else:
            value = products(row, tap * filters + filter_)
        return te.sum(tvm.tirx.if_then_else(tvm.tirx.all(*conditions), value, tvm.tirx.const(0, value.ty)), numbers)

    return te.compute(tuple(made), output, name="sum_of_taps")
