"""Convolutions: plain, transposed and deformable, of one to three axes and any dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvm import relax

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


CONVERTERS: dict[str, Converter] = {
    "Conv": _conv,
}
