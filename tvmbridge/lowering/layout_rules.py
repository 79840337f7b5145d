"""How each operator is computed on tensors that are stored in another order of axes: one table, one rule a kind.

A rule takes the layouts and a call of the old function, and gives where its result is; None leaves the call as it is,
on operands that are stored as the model has them. Shapes are static wherever a rule is asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import tvm
from tvm import relax

from tvmbridge.lowering.layouts import (
    Laid,
    Layouts,
    Order,
    Shape,
    known_shape,
    natural,
    permuted,
    reshaped,
    seen_through,
    static_shape,
)
from tvmbridge.lowering.transposed_conv import transposed_convolution

op = relax.op
Operands = Sequence[Laid]
Rule = Callable[[Layouts, relax.Call, Operands], "Laid | tuple[Laid, ...] | None"]


def _given(layouts: Layouts, expr: relax.Expr, order: Order) -> Laid:
    """The result of an operator on stored tensors."""
    var = layouts.emit(expr)
    return Laid(var, order, known_shape(var))


def _rebuilt(call: relax.Call, *operands: relax.Expr) -> relax.Call:
    return relax.Call(call.op, [*operands, *call.args[len(operands) :]], call.attrs, call.ty_args)


def _leading(layouts: Layouts, operands: Operands, rank: int) -> Laid | None:
    """The operand by whose layout the others go: of the largest, one that the operator can fuse with, else a moved one.

    Of those one that is stored in another shape comes first, since it fuses only where it is read as it is stored.
    """
    candidates = [x for x in operands if len(x.order) == rank and not isinstance(x.stored, tvm.ir.GenericConst)]

    def weight(x: Laid) -> tuple[int, bool, bool, bool]:
        return math.prod(x.view), _fuses(layouts, x.stored), x.view != static_shape(x.stored), not x.is_natural

    return max(candidates, key=weight, default=None)


def _fuses(layouts: Layouts, stored: relax.Expr) -> bool:
    """Whether a tensor is computed by a contraction, or by element-wise operators that fuse with one."""
    made_by = layouts.builder.lookup_binding(stored) if isinstance(stored, relax.Var) else None
    return getattr(getattr(made_by, "op", None), "name", "") in (_CONTRACTIONS | ELEMENTWISE)


def _elementwise(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    made = known_shape(call)
    lead = _leading(layouts, operands, len(made))
    if lead is None or lead.is_natural:
        return None if all(x.is_natural for x in operands) else _naturally(layouts, call, operands)
    order, view, stored = lead.order, permuted(made, lead.order), known_shape(lead.stored)
    full = [permuted((1,) * (len(made) - len(x.order)) + x.shape, order) if x.order else () for x in operands]
    shapes: list[Shape] = full
    if lead.view == view:  # else the operator makes more elements than the leading operand stores
        seen = [seen_through(stored, view, shape) if shape else () for shape in full]
        shapes = [shape for shape in seen if shape is not None] if None not in seen else full
    orders = [_trailing(order, len(x.order)) for x in operands]
    tensors = [layouts.store(x, way, shape) for x, way, shape in zip(operands, orders, shapes, strict=True)]
    return Laid(layouts.emit(_rebuilt(call, *tensors)), order, view)


def _trailing(order: Order, rank: int) -> Order:
    """The order of the last `rank` axes."""
    missing = len(order) - rank
    return tuple(axis - missing for axis in order if axis >= missing)


def _naturally(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid:
    made = known_shape(call)
    return _given(layouts, _rebuilt(call, *(layouts.natural(x) for x in operands)), natural(len(made)))


def _permute_dims(_: Layouts, call: relax.Call, operands: Operands) -> Laid:
    (x,) = operands
    rank = len(x.order)
    axes = [int(axis) % rank for axis in call.attrs.axes or reversed(range(rank))]
    return Laid(x.stored, tuple(axes.index(axis) for axis in x.order), x.view)


def _reshape(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x = operands[0]
    found = reshaped(x, known_shape(call))
    if found is None:
        return None
    order, made = found
    if order == x.order:
        return made
    stored = layouts.store(x, order)
    return Laid(stored, made.order, made.view)


def _positions(x: Laid, axes: Sequence[int]) -> list[int]:
    return [x.order.index(int(axis) % len(x.order)) for axis in axes]


def _reduction(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x = operands[0]
    if x.is_natural or call.attrs.axis is None:
        return None
    given = call.attrs.axis
    axes = [int(axis) % len(x.order) for axis in ([given] if isinstance(given, int) else given)]
    places = sorted(_positions(x, axes))
    build = getattr(op, call.op.name.removeprefix("relax."))
    keepdims = bool(call.attrs.keepdims)
    made = build(layouts.store(x, x.order), places[0] if isinstance(given, int) else places, keepdims)
    kept = x.order if keepdims else tuple(axis for axis in x.order if axis not in axes)
    return _given(layouts, made, tuple(sorted(kept).index(axis) for axis in kept))


def _along(build: Callable[[relax.Call, relax.Expr, int], relax.Expr]) -> Rule:
    """Operators that work along one axis and keep the shape."""

    def rule(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
        x = operands[0]
        if x.is_natural or call.attrs.axis is None:
            return None
        (place,) = _positions(x, [call.attrs.axis])
        return _given(layouts, build(call, layouts.store(x, x.order), place), x.order)

    return rule


def _normalise(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    """layer_norm and rms_norm along one axis; in the shape in which they are stored, where that axis is the last."""
    x, *weights = operands
    if x.is_natural or len(call.attrs.axes) != 1:
        return None
    (place,) = _positions(x, call.attrs.axes)
    stored = known_shape(x.stored)
    keeps_last = place == len(x.order) - 1 and bool(stored) and stored[-1] == x.view[-1]
    shape, axis = (stored, len(stored) - 1) if keeps_last else (x.view, place)
    tensors = [layouts.store(x, x.order, shape), *(layouts.natural(weight) for weight in weights)]
    build = op.nn.layer_norm if len(weights) == 2 else op.nn.rms_norm
    return Laid(layouts.emit(build(*tensors, axis, float(call.attrs.epsilon))), x.order, x.view)


def _group_norm(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x, *weights = operands
    if x.is_natural:
        return None
    (channel,) = _positions(x, [call.attrs.channel_axis])
    made = op.nn.group_norm(
        layouts.store(x, x.order),
        *(layouts.natural(weight) for weight in weights),
        int(call.attrs.num_groups),
        channel,
        sorted(_positions(x, call.attrs.axes)),
        float(call.attrs.epsilon),
    )
    return _given(layouts, made, x.order)


def _concat(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    lead = _leading(layouts, operands, len(operands[0].order))
    if lead is None or lead.order == natural(len(lead.order)):
        return None
    tensors = [layouts.store(x, lead.order) for x in operands]
    return _given(layouts, op.concat(tensors, _positions(lead, [call.attrs.axis])[0]), lead.order)


def _split(layouts: Layouts, call: relax.Call, operands: Operands) -> tuple[Laid, ...]:
    """One slice for each part: unlike a split, a slice fuses with what reads it."""
    (x,) = operands
    axis, sections = int(call.attrs.axis) % len(x.order), call.attrs.indices_or_sections
    extent, stored = x.shape[axis], layouts.store(x, x.order)
    if isinstance(sections, int | tvm.tirx.IntImm):
        size = -(-extent // int(sections))
        cuts = [min(extent, part * size) for part in range(int(sections) + 1)]
    else:
        cuts = [0, *(min(extent, int(index)) for index in sections), extent]
    places = _positions(x, [axis])
    return tuple(
        _given(layouts, op.strided_slice(stored, places, [start], [end]), x.order)
        for start, end in itertools.pairwise(cuts)
    )


def _strided_slice(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x = operands[0]
    if x.order == natural(len(x.order)) or not isinstance(call.args[1], relax.Tuple):
        return None
    places = _positions(x, [int(axis) for axis in call.args[1].fields])
    made = op.strided_slice(
        layouts.store(x, x.order), places, *call.args[2:], assume_inbound=bool(call.attrs.assume_inbound)
    )
    return _given(layouts, made, x.order)


def _take_one(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    """One slice, whose number is a constant: taken out where it is stored."""
    x, index = operands
    known, axis = index.stored, call.attrs.axis
    if axis is None or index.order or not isinstance(known, tvm.ir.GenericConst):
        return None
    axis = int(axis) % len(x.order)
    number, count = int(known.value.numpy()), x.shape[axis]
    if not -count <= number < count:
        return None
    number %= count
    part = op.strided_slice(layouts.store(x, x.order), _positions(x, [axis]), [number], [number + 1])
    order = tuple(a - (a > axis) for a in x.order if a != axis)
    view = tuple(extent for a, extent in zip(x.order, x.view, strict=True) if a != axis)
    return Laid(layouts.emit(part), order, view)


def _pad(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    (x,) = operands
    if x.order == natural(len(x.order)):
        return None
    width = [int(entry) for entry in call.attrs.pad_width]
    moved = [entry for axis in x.order for entry in width[2 * axis : 2 * axis + 2]]
    made = op.nn.pad(layouts.store(x, x.order), moved, str(call.attrs.pad_mode), float(call.attrs.pad_value))
    return _given(layouts, made, x.order)


def _broadcast_to(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x, made = operands[0], known_shape(call)
    if len(x.order) != len(made) or x.order == natural(len(made)):
        return None
    return _given(layouts, op.broadcast_to(layouts.store(x, x.order), permuted(made, x.order)), x.order)


def _pool(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    (x,) = operands
    if x.order == natural(len(x.order)):
        return None
    layout = "".join(str(call.attrs.layout)[axis] for axis in x.order)
    name = call.op.name.removeprefix("relax.nn.")
    data = layouts.store(x, x.order)
    if name.startswith("adaptive"):
        made = getattr(op.nn, name)(data, [int(extent) for extent in call.attrs.output_size], layout)
    else:
        names = ("pool_size", "strides", "padding", "dilation")
        settings = [[int(entry) for entry in getattr(call.attrs, name)] for name in names]
        flags = bool(call.attrs.ceil_mode), bool(call.attrs.count_include_pad)
        made = getattr(op.nn, name)(data, *settings, *flags, layout)
    return _given(layouts, made, x.order)


def _resize2d(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid | None:
    x, attrs = operands[0], call.attrs
    if str(attrs.layout) != "NCHW" or x.order != (0, 2, 3, 1):
        return None
    made = op.image.resize2d(
        layouts.store(x, x.order),
        call.args[1],
        [float(entry) for entry in attrs.roi],
        "NHWC",
        str(attrs.method),
        str(attrs.coordinate_transformation_mode),
        str(attrs.rounding_method),
        float(attrs.cubic_alpha),
        int(attrs.cubic_exclude),
        float(attrs.extrapolation_value),
    )
    return _given(layouts, made, x.order)


def _convolution(layouts: Layouts, call: relax.Call, operands: Operands) -> Laid:
    """Channels last; in one dimension as in two of which one has extent 1."""
    x, weight = operands
    attrs, rank = call.attrs, len(x.order)
    spatial = "DHW"[5 - rank :] if rank > 3 else "W"
    data_layout, kernel_layout = str(attrs.data_layout), str(attrs.kernel_layout)
    order = tuple(data_layout.index(axis) for axis in f"N{spatial}C")
    kernel_order = tuple(kernel_layout.index(axis) for axis in f"{spatial}IO")
    strides, padding, dilation = ([int(e) for e in getattr(attrs, n)] for n in ("strides", "padding", "dilation"))
    data_shape, kernel_shape = permuted(x.shape, order), permuted(weight.shape, kernel_order)
    if rank == 3:
        spatial, strides, dilation = "HW", [1, *strides], [1, *dilation]
        padding = [0, padding[0], 0, padding[1]]
        data_shape, kernel_shape = (data_shape[0], 1, *data_shape[1:]), (1, *kernel_shape)
    build = op.nn.conv3d if rank == 5 else op.nn.conv2d
    made = build(
        layouts.store(x, order, data_shape),
        layouts.store(weight, kernel_order, kernel_shape),
        strides,
        padding,
        dilation,
        int(attrs.groups),
        f"N{spatial}C",
        f"{spatial}IO",
        out_dtype=str(call.ty.dtype),
    )
    out_layout = str(attrs.out_layout) or data_layout
    out_order = tuple(out_layout.index(axis) for axis in f"N{spatial[-(rank - 2) :]}C")
    return Laid(layouts.emit(made), out_order, permuted(known_shape(call), out_order))


_ELEMENTWISE_NAMES = (
    *("add", "subtract", "multiply", "divide", "floor_divide", "power", "mod", "floor_mod", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "where", "clip", "astype"),
    *("logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("bitwise_not", "left_shift", "right_shift", "abs", "negative", "sign", "floor", "ceil", "round", "trunc"),
    *("exp", "log", "sqrt", "rsqrt", "square", "erf", "sigmoid", "tanh", "sin", "cos", "tan", "sinh", "cosh"),
    *("asin", "acos", "atan", "asinh", "acosh", "atanh", "isnan", "isinf", "isfinite"),
    *("nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.selu", "nn.silu", "nn.softplus"),
)
ELEMENTWISE = frozenset(f"relax.{name}" for name in _ELEMENTWISE_NAMES)
_CONVOLUTIONS = frozenset(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))
_CONTRACTIONS = _CONVOLUTIONS | {"relax.matmul", "relax.call_tir"}
_REDUCTIONS = ("mean", "sum", "max", "min", "prod", "variance", "std", "argmax", "argmin")
_POOLS = tuple(f"nn.{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg") for rank in (1, 2, 3))

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys((f"relax.{name}" for name in _REDUCTIONS), _reduction),
    **dict.fromkeys((f"relax.{name}" for name in _POOLS), _pool),
    **dict.fromkeys(("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"), _reshape),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)), transposed_convolution),
    **dict.fromkeys(("relax.nn.layer_norm", "relax.nn.rms_norm"), _normalise),
    "relax.broadcast_to": _broadcast_to,
    "relax.concat": _concat,
    "relax.flip": _along(lambda _, x, axis: op.flip(x, axis)),
    "relax.image.resize2d": _resize2d,
    "relax.nn.group_norm": _group_norm,
    "relax.nn.log_softmax": _along(lambda _, x, axis: op.nn.log_softmax(x, axis)),
    "relax.nn.pad": _pad,
    "relax.nn.softmax": _along(lambda _, x, axis: op.nn.softmax(x, axis)),
    "relax.permute_dims": _permute_dims,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.take": _take_one,
}
