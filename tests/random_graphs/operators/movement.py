"""Moving elements: shapes, slices, pads, joining and splitting, blocks of pixels."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tests.random_graphs.graph import ANY, FLOATS, LARGEST_SIZE, NUMBERS, Graph, Rejected, Tensor


def transpose(g: Graph) -> Tensor:
    x = g.pick(ANY)
    order = list(range(x.rank))
    for end in range(x.rank - 1, 0, -1):
        other = g.choices.integer(0, end)
        order[end], order[other] = order[other], order[end]
    return g.op("Transpose", [x], perm=order if order and g.choices.odds(0.85) else None)


def reshape(g: Graph) -> Tensor:
    x = g.pick(ANY)
    shape = list(g.factors(x.value.size, g.choices.integer(1, 5)))
    if g.choices.odds(0.3):
        shape[g.choices.integer(0, len(shape) - 1)] = -1
    elif x.rank and g.choices.odds(0.2) and shape[0] == x.shape[0]:
        shape[0] = 0
    return g.reshape(x, shape)


def flatten(g: Graph) -> Tensor:
    x = g.pick(ANY)
    return g.op("Flatten", [x], axis=g.choices.integer(0, x.rank) if g.choices.odds(0.8) else None)


def squeeze(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1)
    ones = [axis for axis, extent in enumerate(x.shape) if extent == 1]
    if not ones:
        raise Rejected("nothing to squeeze")
    if g.choices.odds(0.3):
        return g.op("Squeeze", [x])
    axes = [axis - x.rank if g.opset >= 11 and g.choices.odds(0.3) else axis for axis in ones if g.choices.odds(0.7)]
    if not axes:
        raise Rejected("nothing to squeeze")
    return g.op("Squeeze", [x], axes=axes) if g.opset < 13 else g.op("Squeeze", [x, g.constant(axes)])


def unsqueeze(g: Graph) -> Tensor:
    x = g.pick(ANY, high=4)
    count = g.choices.of((1, 1, 2)) if x.rank < 4 else 1
    axes = sorted({g.choices.integer(0, x.rank + count - 1) for _ in range(count)})
    if max(axes) >= x.rank + len(axes):
        raise Rejected("an axis too far")
    if g.opset >= 11 and g.choices.odds(0.3):
        axes = [axis - x.rank - len(axes) for axis in axes]
    return g.op("Unsqueeze", [x], axes=axes) if g.opset < 13 else g.op("Unsqueeze", [x, g.constant(axes)])


def expand(g: Graph) -> Tensor:
    x = g.pick(ANY, high=4)
    shape = [g.choices.of((2, 3, 7)) if n == 1 and g.choices.odds(0.6) else g.choices.of((n, n, 1)) for n in x.shape]
    if g.choices.odds(0.4):
        shape = [g.choices.of((1, 2, 3)), *shape]
    if math.prod(shape) * x.value.size > LARGEST_SIZE * 4:
        raise Rejected("too large")
    return g.op("Expand", [x, g.constant(shape)])


def tile(g: Graph) -> Tensor:
    x = g.pick(ANY)
    repeats = [g.choices.of((1, 1, 2, 3)) for _ in x.shape]
    if math.prod(repeats) * x.value.size > LARGEST_SIZE:
        raise Rejected("too large")
    return g.op("Tile", [x, g.constant(repeats)])


def slice_axes(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1)
    axes, starts, ends, steps = [], [], [], []
    for axis, extent in enumerate(x.shape):
        if not g.choices.odds(0.6):
            continue
        first, last = sorted((g.choices.integer(0, extent), g.choices.integer(0, extent)))
        if first == last:
            first, last = 0, extent
        step = g.choices.of((1, 1, 2, 3)) if g.opset >= 10 else 1
        if g.opset >= 10 and g.choices.odds(0.25):
            first, last, step = last - 1, first - 1 if first else -(2**31), -step
        elif g.choices.odds(0.3):
            first, last = (
                first - extent,
                g.choices.of((last - extent, 2**31 - 1, 2**63 - 1)) if last < extent else 2**63 - 1,
            )
        axes.append(axis - x.rank if g.choices.odds(0.2) and g.opset >= 10 else axis)
        starts.append(first)
        ends.append(last)
        steps.append(step)
    if not axes:
        raise Rejected("nothing to slice")
    if g.opset < 10:
        return g.op("Slice", [x], starts=starts, ends=ends, axes=axes)
    inputs = [g.constant(starts), g.constant(ends), g.constant(axes)]
    if set(steps) != {1} or g.choices.odds(0.3):
        inputs.append(g.constant(steps))
    return g.op("Slice", [x, *inputs])


def pad(g: Graph) -> Tensor:
    x = g.pick(NUMBERS, low=1)
    mode = g.choices.of(("constant", "constant", "reflect", "edge", *(("wrap",) if g.opset >= 19 else ())))
    axes = [axis for axis in range(x.rank) if g.choices.odds(0.6)] or [x.rank - 1]
    pads = [0] * (2 * x.rank)
    for axis in axes:
        most = 3 if mode in ("constant", "edge") else min(3, x.shape[axis] - 1)
        for side in (axis, axis + x.rank):
            least = -min(1, (x.shape[axis] - 1) // 3) if mode == "constant" and g.choices.odds(0.2) else 0
            pads[side] = g.choices.integer(least, most)
    fill = g.choices.of((None, 0, 1, 3))
    if g.opset < 11:
        return g.op("Pad", [x], mode=mode, pads=pads, value=None if fill is None else float(fill))
    inputs: list[Tensor | None] = [x, g.constant(pads)]
    if g.opset >= 18 and g.choices.odds(0.4):
        some = [side for side in (*axes, *(axis + x.rank for axis in axes))]
        inputs[1] = g.constant([pads[side] for side in some])
        inputs += [None, g.constant(axes)]
    if mode == "constant" and fill is not None:
        inputs[2:3] = [g.scalar(fill, x.dtype)]
    return g.op("Pad", inputs, mode=mode)


def concat(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1)
    axis = g.axis(x)
    others = [t for t in (*g.inputs.values(), *g.computed) if t.dtype == x.dtype and _joins(t, x, axis % x.rank)]
    parts = [x]
    for _ in range(g.choices.of((1, 2, 1, 3))):
        shape = list(x.shape)
        shape[axis] = g.choices.of((1, 2, 5))
        fresh = g.choices.odds(0.4)
        parts.append(g.weight(g.data(shape, x.dtype)) if fresh or not others else g.choices.of(others))
    if g.choices.odds(0.3):
        parts.reverse()
    return g.op("Concat", parts, axis=axis if g.opset >= 11 else axis % x.rank)


def _joins(a: Tensor, b: Tensor, axis: int) -> bool:
    return a.rank == b.rank and all(i == axis or n == m for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)))


def split(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1)
    axis = g.axis(x) if g.opset >= 11 else g.choices.integer(0, x.rank - 1)
    extent = x.shape[axis]
    if g.opset >= 18 and g.choices.odds(0.4):
        count = g.choices.integer(1, min(4, extent))
        if -(-extent // count) * (count - 1) >= extent:
            raise Rejected("an empty part")
        return g.choices.of(g.ops("Split", [x], count, axis=axis, num_outputs=count))
    cuts = sorted({g.choices.integer(0, extent) for _ in range(g.choices.integer(1, 3))} | {0, extent})
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    if g.opset < 13:
        return g.choices.of(g.ops("Split", [x], len(sizes), axis=axis, split=sizes))
    return g.choices.of(g.ops("Split", [x, g.constant(sizes)], len(sizes), axis=axis))


def stack(g: Graph) -> Tensor:
    """Unsqueeze and Concat, as exporters write it; sometimes through a sequence."""
    x = g.pick(FLOATS, high=4)
    parts = [x, g.weight(g.data(x.shape, x.dtype))]
    axis = g.choices.integer(0, x.rank)
    if g.opset < 13:
        return g.op("Concat", [g.op("Unsqueeze", [part], axes=[axis]) for part in parts], axis=axis)
    return g.op("Concat", [g.op("Unsqueeze", [part, g.constant([axis])]) for part in parts], axis=axis)


def pixels(g: Graph) -> Tensor:
    kind = g.choices.of(("DepthToSpace", "SpaceToDepth"))
    x = g.pick(FLOATS, low=4, high=4)
    block = g.choices.of((2, 3, 1))
    if kind == "SpaceToDepth":
        if x.shape[2] % block or x.shape[3] % block:
            raise Rejected("not a multiple")
        return g.op(kind, [x], blocksize=block)
    if x.shape[1] % block**2:
        raise Rejected("not a multiple")
    return g.op(kind, [x], blocksize=block, mode=g.choices.of((None, "DCR", "CRD")) if g.opset >= 11 else None)


def shuffle(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=4, high=4)
    batch, channels, *space = x.shape
    groups = g.choices.of([d for d in range(1, channels + 1) if channels % d == 0])
    y = g.op("Transpose", [g.reshape(x, (batch, groups, channels // groups, *space))], perm=[0, 2, 1, 3, 4])
    return g.reshape(y, x.shape)


def triangle(g: Graph) -> Tensor:
    x = g.pick((*FLOATS, "int64", "int32", "bool"), low=2)
    inputs = [x, g.scalar(g.choices.integer(-2, 2), "int64")] if g.choices.odds(0.5) else [x]
    return g.op("Trilu", inputs, upper=g.choices.of((None, 0, 1)))


def reverse(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=2)
    axis = g.choices.integer(0, 1)
    lengths = g.generator.integers(1, x.shape[axis] + 1, (x.shape[1 - axis],))
    return g.op("ReverseSequence", [x, g.weight(np.asarray(lengths))], time_axis=axis, batch_axis=1 - axis)


def centre(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=1)
    axis = g.axis(x)
    return g.op("CenterCropPad", [x, g.constant([g.choices.of((1, 4, 9))])], axes=[axis])


def compress(g: Graph) -> Tensor:
    x = g.pick(NUMBERS, low=1)
    axis = g.axis(x) if g.opset >= 11 else g.choices.integer(0, x.rank - 1)
    mask = g.data((x.shape[axis],), "bool")
    mask[0] = True
    return g.op("Compress", [x, g.constant(mask)], axis=axis)


OPERATORS = (
    transpose, transpose, reshape, reshape, flatten, squeeze, unsqueeze, expand, tile, slice_axes, slice_axes, pad,
    pad, concat, concat, split, split, stack, pixels, shuffle, triangle, reverse, centre, compress,
)  # fmt: skip
WITH_SPECIALS = (transpose, reshape, slice_axes, concat, expand, tile, unsqueeze)
