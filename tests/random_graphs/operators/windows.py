"""Over space: pools, resizing, sampling at a grid, regions, columns of a window."""

from __future__ import annotations

import math

import numpy as np

from tests.random_graphs.graph import FLOATS, Graph, Rejected, Tensor
from tests.random_graphs.operators.contractions import window


def pool(g: Graph) -> Tensor:
    kind = g.choices.of(("MaxPool", "AveragePool", "LpPool"))
    x = g.pick(FLOATS, low=3, high=5)
    spatial = x.rank - 2
    kernel = [g.choices.of([size for size in (2, 3, 1, 5) if size <= extent + 1]) for extent in x.shape[2:]]
    since = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[kind]
    dilations = [1] * spatial
    if g.opset >= since and g.choices.odds(0.3):
        dilations = [g.choices.of((1, 2)) for _ in range(spatial)]
    attributes = window(g, x, kernel, dilations)
    if str(attributes.get("auto_pad", "")).startswith("SAME"):
        dilations = [1] * spatial  # ONNX Runtime pads by the kernel, ONNX by what it reaches
    pads = attributes.get("pads", [0])
    if max(pads) >= min(kernel):  # type: ignore[call-overload]
        raise Rejected("a window of padding only")
    if set(dilations) != {1}:
        attributes["dilations"] = dilations
    if g.opset >= (18 if kind == "LpPool" else 10):
        attributes["ceil_mode"] = g.choices.of((None, 0, 1))
    if kind == "AveragePool":
        attributes["count_include_pad"] = g.choices.of((None, 0, 1))
    if kind == "LpPool":
        attributes["p"] = g.choices.of((None, 1, 2, 3))
    outputs = 2 if kind == "MaxPool" and g.opset >= 8 and g.choices.odds(0.2) else 1
    return g.ops(kind, [x], outputs, kernel_shape=kernel, **attributes)[0]


def global_pool(g: Graph) -> Tensor:
    kind = g.choices.of(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
    return g.op(kind, [g.pick(FLOATS, low=3, high=5)])


def resize(g: Graph) -> Tensor:
    """Resize, and Upsample where an op-set has it."""
    x = g.pick((*FLOATS, "uint8", "int8", "int32"), low=1, high=5)
    spatial = g.choices.integer(1, min(3, x.rank))
    kept = x.rank - spatial
    scales = [1.0] * kept + [g.choices.of((2.0, 1.0, 0.5, 3.0, 1.5, 0.75)) for _ in range(spatial)]
    # Of whole numbers a value between two is cut off, and rounding errors decide where it is next to one.
    modes = ("nearest", "linear", "cubic") if x.dtype in FLOATS else ("nearest",)
    mode = g.choices.of(modes)
    if any(math.floor(n * s) < 1 for n, s in zip(x.shape, scales, strict=True)):
        raise Rejected("nothing left")
    factor = g.constant(np.array(scales, "float32"))
    if g.opset < 10:
        scales = [max(1.0, scale) for scale in scales]
        if g.opset < 9:
            return g.op("Upsample", [x], mode=g.choices.of(modes[:2]), scales=scales)
        return g.op("Upsample", [x, g.constant(np.array(scales, "float32"))], mode=g.choices.of(modes[:2]))
    if g.opset == 10:
        return g.op("Resize", [x, factor], mode=g.choices.of(modes[:2]))
    attributes: dict[str, object] = {"mode": mode}
    ways = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes["coordinate_transformation_mode"] = g.choices.of(
        [*ways, "half_pixel_symmetric"] if g.opset >= 19 else ways
    )
    if mode == "nearest":
        attributes["nearest_mode"] = g.choices.of(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if mode == "cubic":
        attributes["cubic_coeff_a"] = g.choices.of((None, -0.5, -0.75))
        attributes["exclude_outside"] = g.choices.of((None, 0, 1))
    if g.opset >= 18 and mode != "nearest" and g.choices.odds(0.2):
        attributes["antialias"] = 1
    roi = g.constant(np.zeros((0,), "float32")) if g.opset < 13 else None
    # Of a scale that gives no whole size ONNX Runtime takes the size in these, and ONNX's definition the scale.
    by_size = attributes["coordinate_transformation_mode"] == "align_corners" or "antialias" in attributes
    whole = all((n * s).is_integer() for n, s in zip(x.shape, scales, strict=True))
    if g.choices.odds(0.5) and (whole or not by_size):
        return g.op("Resize", [x, roi, factor], **attributes)
    sizes = [math.floor(n * s) for n, s in zip(x.shape, scales, strict=True)]
    if g.opset >= 18 and g.choices.odds(0.5):
        attributes["axes"] = list(range(kept, x.rank))
        sizes = sizes[kept:]
        attributes["keep_aspect_ratio_policy"] = g.choices.of((None, "stretch", "not_larger", "not_smaller"))
    none = g.constant(np.zeros((0,), "float32")) if g.opset < 13 else None
    return g.op("Resize", [x, roi, none, g.constant(sizes)], **attributes)


def grid_sample(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1], low=4, high=5 if g.opset >= 20 else 4)
    spatial = x.rank - 2
    shape = (x.shape[0], *(g.choices.of((1, 2, 5, 7)) for _ in range(spatial)), spatial)
    names = ("bilinear", "nearest", "bicubic") if g.opset < 20 else ("linear", "nearest", "cubic")
    return g.op(
        "GridSample",
        [x, g.weight(g.generator.uniform(-1.2, 1.2, shape).astype("float32"))],
        mode=g.choices.of(names[: 2 if spatial == 3 else 3]),
        padding_mode=g.choices.of(("zeros", "border", "reflection")),
        align_corners=g.choices.integer(0, 1),
    )


def affine_grid(g: Graph) -> Tensor:
    shape = (g.choices.of((1, 2)), 3, g.choices.of((2, 5, 7)), g.choices.of((3, 4)))
    theta = g.input((shape[0], 2, 3), "float32")
    return g.op("AffineGrid", [theta, g.constant(shape)], align_corners=g.choices.of((None, 0, 1)))


def region_align(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1], low=4, high=4)
    count = g.choices.of((1, 3))
    corners = g.generator.uniform(0, 1, (count, 2, 2)).astype("float32")
    corners = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1.0], axis=1)
    boxes = corners * np.array([x.shape[3], x.shape[2]] * 2, "float32") * 0.5
    batch = g.constant(g.generator.integers(0, x.shape[0], (count,)))
    return g.op(
        "RoiAlign",
        [x, g.weight(boxes.astype("float32")), batch],
        output_height=g.choices.of((1, 2, 3)),
        output_width=2,
        sampling_ratio=g.choices.of((None, 1, 2)),
        spatial_scale=g.choices.of((None, 0.5)),
        mode="avg",  # of the other, ONNX Runtime says that it computes it wrongly
    )


def columns(g: Graph) -> Tensor:
    """Col2Im of overlapping blocks."""
    height, width = g.choices.of((4, 5, 7)), g.choices.of((4, 6))
    block = [g.choices.of((1, 2, 3)), 2]
    count = (height - block[0] + 1) * (width - block[1] + 1)
    x = g.input((1, 3 * math.prod(block), count), "float32")
    return g.op("Col2Im", [x, g.constant([height, width]), g.constant(block)])


def unpool(g: Graph) -> Tensor:
    x = g.pick(FLOATS[:1], low=4, high=4)
    pooled, indices = g.ops("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
    return g.op("MaxUnpool", [pooled, indices], kernel_shape=[2, 2], strides=[2, 2])


OPERATORS = (
    pool, pool, pool, pool, global_pool, resize, resize, resize, grid_sample, affine_grid, region_align, columns,
    unpool,
)  # fmt: skip
