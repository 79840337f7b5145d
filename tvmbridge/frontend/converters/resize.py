"""Resize and Upsample: everything is static, so the import works out which elements each sample is made of, and how.

Every axis is resized on its own, from a table of indices and weights in double precision, as ONNX's reference has it.
Linear interpolation of float32 images by whole sizes, and doubling them, are left to Relax's own operator, which can be
laid out channels last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from tvm import relax, te, tirx

from tvmbridge.frontend.operator import OLD_ROUNDING, Converter, Operator

_Floats = np.ndarray
_Weights = Callable[[float, float], _Floats]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """How one axis is resized. scale: as written or, of sizes given, output over input. roi: its ends, 0 to 1."""

    axis: int
    count: int
    made: int
    scale: float
    roi: tuple[float, float]

    @property
    def stays(self) -> bool:
        return self.made == self.count and math.isclose(self.scale, 1.0) and self.roi == (0.0, 1.0)


def _coordinates(axis: _Axis, mode: str) -> _Floats:
    """Where each sample lies on the input, whose elements lie at 0, 1, 2."""
    index, scale, last = np.arange(axis.made, dtype=np.float64), axis.scale, axis.count - 1
    length = scale * axis.count
    if mode == "align_corners":
        return np.zeros(axis.made) if length == 1 else index * last / (length - 1)
    if mode == "asymmetric":
        return index / scale
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if length == 1:
            return np.full(axis.made, (end + start) * last / 2)
        return index * (end - start) * last / (length - 1) + start * last
    if mode == "tf_half_pixel_for_nn":
        return (index + 0.5) / scale
    if mode == "pytorch_half_pixel" and axis.made == 1:
        return np.zeros(1)
    shift = axis.count / 2 * (1 - axis.made / length) if mode == "half_pixel_symmetric" else 0.0
    return shift + (index + 0.5) / scale - 0.5


def _nearest(mode: str) -> Callable[[_Floats], _Floats]:
    rounded: dict[str, Callable[[_Floats], _Floats]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounded[mode]


def _linear(position: float, stretch: float) -> _Floats:
    """Weights of the elements around a sample, the first as far left as a stretched triangle reaches."""
    first = math.floor(-1 / stretch) + 1
    return np.clip(1 - np.abs((np.arange(first, 2 - first) - position) * stretch), 0, 1)


def _cubic(a: float) -> _Weights:
    def weights(position: float, stretch: float) -> _Floats:
        first = math.floor(-2 / stretch) + 1
        x = np.abs((np.arange(first, 2 - first) - position) * stretch)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return weights


def _table(axis: _Axis, x: _Floats, weigh: _Weights, stretch: float, inside: bool) -> tuple[_Floats, _Floats]:
    """Indices and weights, a row for each sample. inside: what lies beyond the ends has no weight."""
    left = np.ceil(x).astype(np.int64) - 1  # a sample on an element has it to its right
    weights = np.array([weigh(position, stretch) for position in x - left])
    width = weights.shape[1]
    indices = left[:, None] + np.arange(width) + 1 - width // 2
    if inside:
        weights = np.where((indices < 0) | (indices >= axis.count), 0.0, weights)
    total = weights.sum(axis=1, keepdims=True)
    if inside or stretch != 1.0:
        weights = weights / np.where(total == 0, 1.0, total)
    return np.clip(indices, 0, axis.count - 1), weights


def _weighted(x: te.Tensor, indices: te.Tensor, weights: te.Tensor, axis: int, made: int, width: int) -> te.Tensor:
    """Each sample along the axis: the sum of its elements times their weights."""
    shape = (*x.shape[:axis], made, *x.shape[axis + 1 :])

    def part(at: tuple[tirx.Var, ...], k: tirx.Expr) -> tirx.Expr:
        element = x(*at[:axis], indices[at[axis], k], *at[axis + 1 :])
        return weights[at[axis], k] * element.astype(weights.dtype)

    if width <= 4:
        return te.compute(shape, lambda *at: sum((part(at, k) for k in range(1, width)), part(at, 0)), name="resize")
    reach = te.reduce_axis((0, width), "k")
    return te.compute(shape, lambda *at: te.sum(part(at, reach), axis=reach), name="resize")


def _whole(shape: tuple[int, ...], values: np.ndarray, axes: tuple[int, ...], default: float) -> list[float]:
    full = [default] * len(shape)
    for axis, value in zip(axes, values, strict=True):
        full[axis] = float(value)
    return full


def _axes(op: Operator) -> list[_Axis]:
    """Every axis of the input, those that stay too."""
    shape = op.shape(0)
    rank = len(shape)
    axes = tuple(int(axis) % rank for axis in op.attribute("axes", range(rank)))
    crops = op.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    new = op.op_type == "Resize" and op.version >= 11
    roi = op.known(1, "its region") if new and crops else None
    starts, ends = [0.0] * rank, [1.0] * rank
    if roi is not None and roi.size:
        starts, ends = (_whole(shape, part, axes, d) for part, d in zip(np.split(roi, 2), (0.0, 1.0), strict=True))
    position = 2 if new else 1
    sizes = op.known(3, "its sizes") if new else None
    if sizes is not None and sizes.size:
        made = [int(size) for size in _whole(shape, sizes, axes, 0)]
        made = [size if axis in axes else shape[axis] for axis, size in enumerate(made)]
        scales = [size / max(count, 1) for size, count in zip(made, shape, strict=True)]
        policy = op.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scale = (min if policy == "not_larger" else max)(scales[axis] for axis in axes)
            scales = [scale if axis in axes else 1.0 for axis in range(rank)]
            made = [int(scale * n + 0.5) if axis in axes else n for axis, n in enumerate(shape)]
    else:
        given = op.known(position, "its scales") if op.has(position) else op.attribute("scales")
        if given is None and new:
            op.refuse("it has neither scales nor sizes")
        if given is None:
            given = [1.0, 1.0, op.attribute("height_scale", 1.0), op.attribute("width_scale", 1.0)]
        scales = _whole(shape, np.asarray(given), axes, 1.0)
        lengths = np.array(shape, np.float32) * np.array(scales, np.float32)
        made = [int(length) for length in np.floor(lengths)]
    return [_Axis(k, shape[k], made[k], scales[k], (starts[k], ends[k])) for k in range(rank)]


def _as_image(op: Operator, axes: list[_Axis], mode: str, coordinates: str, nearest: str) -> relax.Expr | None:
    """By Relax's operator, where its single precision is enough: samples by powers of two, or linear ones."""
    if op.dtype(0) != "float32" or len(axes) != 4 or not (axes[0].stays and axes[1].stays):
        return None
    ratios = [axis.made / max(axis.count, 1) for axis in axes]
    same = all(math.isclose(axis.scale, ratio, rel_tol=1e-6) for axis, ratio in zip(axes, ratios, strict=True))
    if not same or op.attribute("antialias", 0) or op.attribute("exclude_outside", 0):
        return None
    if coordinates not in ("half_pixel", "asymmetric", "align_corners"):
        return None
    if mode == "nearest":
        doubles = all(ratio >= 1 and math.log2(ratio).is_integer() for ratio in ratios)
        exact = coordinates == "half_pixel" or (coordinates == "asymmetric" and not nearest.startswith("round"))
        if not doubles or not exact:
            return None
    elif mode == "cubic" or min(axis.made for axis in axes[2:]) < 2:
        return None
    size = relax.ShapeExpr([axis.made for axis in axes[2:]])
    return relax.op.image.resize2d(
        op.input(0),
        size,
        layout="NCHW",
        method="nearest_neighbor" if mode == "nearest" else "linear",
        coordinate_transformation_mode=coordinates,
        rounding_method=nearest.replace(OLD_ROUNDING, "floor") if mode == "nearest" else "",
    )


def _rounded(op: Operator, x: relax.Expr, dtype: str) -> relax.Expr:
    """In the result's type, rounded to even and kept in its range where that holds whole numbers."""
    if x.ty.dtype == dtype:
        return x
    if "int" in dtype:
        limits = np.iinfo(dtype)
        x = op.emit(relax.op.round(x))
        x = op.emit(relax.op.clip(x, tirx.const(limits.min, x.ty.dtype), tirx.const(limits.max, x.ty.dtype)))
    return op.emit(relax.op.astype(x, dtype))


def _resize(op: Operator) -> relax.Expr:
    mode = op.attribute("mode", "nearest")
    old = op.op_type == "Upsample" or op.version < 11
    coordinates = "asymmetric" if old else op.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = OLD_ROUNDING if old else op.attribute("nearest_mode", "round_prefer_floor")
    mode = "linear" if mode == "bilinear" else mode
    antialias, inside = bool(op.attribute("antialias", 0)), bool(op.attribute("exclude_outside", 0))
    axes = _axes(op)
    if all(axis.stays for axis in axes):
        return op.input(0)
    image = _as_image(op, axes, mode, coordinates, nearest)
    if image is not None:
        return image
    x, dtype = op.input(0), op.dtype(0)
    work = "float64" if dtype in ("float64", "int32", "int64", "uint32", "uint64") else "float32"
    beyond = {}
    for axis in axes:
        if axis.stays:
            continue
        places = _coordinates(axis, coordinates)
        if coordinates == "tf_crop_and_resize":
            beyond[axis.axis] = (places < 0) | (places > axis.count - 1)
        if mode == "nearest":
            rounding = nearest if nearest != OLD_ROUNDING else "floor" if axis.scale >= 1 else "ceil"  # ONNX Runtime's
            indices = np.clip(_nearest(rounding)(places), 0, axis.count - 1).astype(np.int64)
            x = op.emit(relax.op.take(x, relax.const(indices, "int64"), axis.axis, mode="fast"))
            continue
        weigh = _linear if mode == "linear" else _cubic(op.attribute("cubic_coeff_a", -0.75))
        table, weights = _table(axis, places, weigh, min(axis.scale, 1.0) if antialias else 1.0, inside)
        constants = relax.const(table, "int64"), relax.const(weights.astype(work), work)
        x = op.compute(_weighted, x, *constants, axis.axis, axis.made, table.shape[1], name="resize")
    x = _rounded(op, x, dtype)
    if any(mask.any() for mask in beyond.values()):
        outside = np.zeros([axis.made for axis in axes], np.bool_)
        for number, mask in beyond.items():
            outside |= mask.reshape([-1 if k == number else 1 for k in range(len(axes))])
        value = op.const(op.attribute("extrapolation_value", 0.0))
        x = op.emit(relax.op.where(relax.const(outside, "bool"), value, x))
    return x


CONVERTERS: dict[str, Converter] = {
    "Resize": _resize,
    "Upsample": _resize,
}
