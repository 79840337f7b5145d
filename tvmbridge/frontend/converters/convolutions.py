"""Convolutions: plain, transposed and deformable, of one to three axes and any dtype."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import tvm
from tvm import relax, te, tirx, topi

from tvmbridge.frontend.operator import Converter, Operator

_FORWARD = {1: (relax.op.nn.conv1d, "NCW", "OIW"), 2: (relax.op.nn.conv2d, "NCHW", "OIHW")}
_FORWARD[3] = (relax.op.nn.conv3d, "NCDHW", "OIDHW")
_TRANSPOSED = {
    1: (relax.op.nn.conv1d_transpose, "NCW", "IOW"),
    2: (relax.op.nn.conv2d_transpose, "NCHW", "IOHW"),
    3: (relax.op.nn.conv3d_transpose, "NCDHW", "IODHW"),
}


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes: one number an axis; extents of the input and of the kernel, too."""

    given: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first to the last element under the kernel, both included."""
        return tuple((taps - 1) * step + 1 for taps, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        """As ONNX and Relax write them: all beginnings, then all ends."""
        return [*self.before, *self.after]


def find_window(op: Operator, kernel: Sequence[int], given: Sequence[int]) -> Window:
    """The window by the operator's strides, dilations and pads or auto_pad."""
    rank = len(given)
    strides = tuple(op.attribute("strides") or (1,) * rank)
    dilations = tuple(op.attribute("dilations") or (1,) * rank)
    pads, auto_pad = tuple(op.attribute("pads") or (0,) * 2 * rank), op.attribute("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = (0,) * 2 * rank
    window = Window(tuple(given), tuple(kernel), strides, dilations, pads[:rank], pads[rank:])
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return window
    missing = [
        max(0, (-(-extent // stride) - 1) * stride + reach - extent)
        for extent, stride, reach in zip(given, strides, window.reach, strict=True)
    ]
    smaller, larger = tuple(pad // 2 for pad in missing), tuple(pad - pad // 2 for pad in missing)
    before, after = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
    return dataclasses.replace(window, before=before, after=after)


def convolve(op: Operator, x: relax.Expr, weight: relax.Expr) -> relax.Expr:
    """The convolution of two tensors of one dtype by the operator's attributes, without a bias."""
    given, kernel = ([int(axis) for axis in tensor.ty.shape.values[2:]] for tensor in (x, weight))
    if len(given) not in _FORWARD:
        op.refuse(f"a convolution over {len(given)} axes")
    window = find_window(op, kernel, given)
    build, layout, kernel_layout = _FORWARD[len(given)]
    return op.emit(
        build(
            x,
            weight,
            strides=window.strides,
            padding=window.pads,
            dilation=window.dilations,
            groups=op.attribute("group", 1),
            data_layout=layout,
            kernel_layout=kernel_layout,
        )
    )


def add_bias(op: Operator, x: relax.Expr, bias: relax.Expr) -> relax.Expr:
    """x plus one number a channel."""
    return op.emit(relax.op.add(x, op.emit(relax.op.reshape(bias, [1, -1] + [1] * (x.ty.ndim - 2)))))


def _conv(op: Operator) -> relax.Expr:
    made = convolve(op, op.input(0), op.input(1))
    return add_bias(op, made, op.input(2)) if op.has(2) else made


def _conv_transpose(op: Operator) -> relax.Expr:
    """Pads follow from the extents wanted where these are given; what no input reaches is the bias alone."""
    rank, made = len(op.shape(0)) - 2, op.result_shape()[2:]
    if rank not in _TRANSPOSED:
        op.refuse(f"a convolution over {rank} axes")
    window = find_window(op, op.shape(1)[2:], op.shape(0)[2:])
    full = [
        (extent - 1) * stride + reach
        for extent, stride, reach in zip(window.given, window.strides, window.reach, strict=True)
    ]
    before, auto_pad = window.before, op.attribute("auto_pad", "NOTSET")
    extra, wanted_shape = op.attribute("output_padding") or (0,) * rank, op.attribute("output_shape")
    if auto_pad.startswith("SAME") and any(extra) and wanted_shape is None:
        op.refuse("auto_pad with output_padding, of which ONNX infers another shape than it defines")
    if wanted_shape is not None or auto_pad.startswith("SAME"):
        cut = [max(0, reached + more - wanted) for reached, more, wanted in zip(full, extra, made, strict=True)]
        before = tuple(pad // 2 if auto_pad == "SAME_UPPER" else pad - pad // 2 for pad in cut)
    beyond = [wanted + pad - reached for wanted, pad, reached in zip(made, before, full, strict=True)]
    build, layout, kernel_layout = _TRANSPOSED[rank]
    expr = op.emit(
        build(
            op.input(0),
            op.input(1),
            strides=window.strides,
            padding=[*before, *(max(0, -count) for count in beyond)],
            dilation=window.dilations,
            groups=op.attribute("group", 1),
            data_layout=layout,
            kernel_layout=kernel_layout,
        )
    )
    if max(beyond) > 0:
        expr = op.emit(relax.op.nn.pad(expr, [0] * 4 + [width for count in beyond for width in (0, max(0, count))]))
    return add_bias(op, expr, op.input(2)) if op.has(2) else expr


def _deform_conv(op: Operator) -> relax.Expr:
    """Elements are sampled at the taps' places first, in kernels of their own; then it is a product of matrices."""
    batch, _, *given = op.shape(0)
    filters, depth, *kernel = op.shape(1)
    places, groups = op.shape(2)[2:], op.attribute("group", 1)
    window, taps, count = find_window(op, kernel, given), math.prod(kernel), math.prod(places)
    at = op.compute(lambda offset: _coordinates(window, offset), op.input(2), name="deformed_coordinates")
    operands = [op.input(0), at, *([op.input(4)] if op.has(4) else [])]
    sampled = op.compute(_samples, op.attribute("offset_group", 1), *operands, name="deformed_samples")
    columns = op.emit(relax.op.reshape(sampled, (batch, groups, depth * taps, count)))
    weight = op.emit(relax.op.reshape(op.input(1), (groups, filters // groups, depth * taps)))
    product = op.emit(relax.op.matmul(weight, columns))
    made = op.emit(relax.op.reshape(product, (batch, filters, *places)))
    return add_bias(op, made, op.input(3)) if op.has(3) else made


def _coordinates(window: Window, offset: te.Tensor) -> te.Tensor:
    """Where the taps are, of the offsets' shape; far away or NaN is a place beside the tensor, which fits an index."""
    rank, wide = len(window.given), "float64" if str(offset.dtype) == "float64" else "float32"

    def coordinate(image: tvm.ir.Expr, row: tvm.ir.Expr, *place: tvm.ir.Expr) -> tvm.ir.Expr:
        tap, axis = row // rank % math.prod(window.kernel), row % rank
        start, extent = tirx.const(0, "int32"), tirx.const(0, "int32")
        for i in range(rank):
            own = tap // math.prod(window.kernel[i + 1 :]) % window.kernel[i]
            first = place[i] * window.strides[i] - window.before[i] + own * window.dilations[i]
            start = tirx.Select(axis == i, first.astype("int32"), start)
            extent = tirx.Select(axis == i, tirx.const(window.given[i], "int32"), extent)
        at, least = offset(image, row, *place).astype(wide) + start.astype(wide), tirx.const(-1, wide)
        at, most = tirx.Select(at > least, at, least), extent.astype(wide)
        return tirx.Select(at < most, at, most)

    return te.compute(offset.shape, coordinate, name="coordinates", tag=topi.tag.INJECTIVE)


def _samples(lots: int, x: te.Tensor, at: te.Tensor, mask: te.Tensor | None = None) -> te.Tensor:
    """[image, channel, tap, *place]: x between elements, zero outside. lots: groups of channels with offsets alike."""
    (batch, channels, *_), places = (int(axis) for axis in x.shape), at.shape[2:]
    rank, wide = len(places), str(at.dtype)
    taps = int(at.shape[1]) // (lots * rank)

    def sample(image: tvm.ir.Expr, channel: tvm.ir.Expr, tap: tvm.ir.Expr, *place: tvm.ir.Expr) -> tvm.ir.Expr:
        row = channel // (channels // lots) * taps + tap
        where = [at(image, row * rank + axis, *place) for axis in range(rank)]
        total = tirx.const(0, wide)
        for corner in itertools.product((0, 1), repeat=rank):
            total += _corner(x, (image, channel), where, corner)
        value = total if mask is None else total * mask(image, row, *place).astype(wide)
        return value.astype(str(x.dtype))

    return te.compute((batch, channels, taps, *places), sample, name="samples", tag=topi.tag.INJECTIVE)


def _corner(
    x: te.Tensor, leading: tuple[tvm.ir.Expr, tvm.ir.Expr], at: list[tvm.ir.Expr], corner: tuple[int, ...]
) -> tvm.ir.Expr:
    """One of the elements around a place, by its share; zero, and not read, where it is outside."""
    wide, share, inside, index = str(at[0].ty.dtype), None, [], []
    for axis, far in enumerate(corner):
        low = tirx.floor(at[axis])
        part = at[axis] - low if far else tirx.const(1, wide) - (at[axis] - low)
        share = part if share is None else share * part
        whole, last = low.astype("int32") + far, x.shape[2 + axis] - 1
        inside.append(tirx.all(whole >= 0, whole <= last))
        index.append(tirx.max(tirx.min(whole, last), 0))
    return tirx.if_then_else(tirx.all(*inside), x(*leading, *index).astype(wide) * share, tirx.const(0, wide))


CONVERTERS: dict[str, Converter] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
}
