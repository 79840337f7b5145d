"""Sums of products: MatMul, Gemm, Einsum, convolutions, transposed ones, attention."""

from __future__ import annotations

import math

import numpy as np

from tests.random_graphs.graph import FLOATS, SIGNED, Graph, Rejected, Tensor

_WIDTHS = (1, 2, 3, 5, 7, 8, 16, 17, 33)
_LARGEST_WORK = 4_000_000


def _filters(g: Graph, shape: tuple[int, ...], dtype: str, fan: int) -> Tensor:
    return g.weight(g.normal(shape, dtype, 1 / math.sqrt(max(1, fan))))


def matmul(g: Graph) -> Tensor:
    x = g.pick(FLOATS + SIGNED[:2], low=1)
    width = g.choices.of(_WIDTHS)
    form = g.choices.of(("matrix", "matrix", "batched", "vector", "left"))
    depth = x.shape[-1]
    if form == "left":
        depth = x.shape[-2] if x.rank > 1 else x.shape[0]
        return g.op("MatMul", [_filters(g, (width, depth), x.dtype, depth), x])
    if form == "vector":
        return g.op("MatMul", [x, _filters(g, (depth,), x.dtype, depth)])
    batch = g.broadcast_to(x.shape[:-2]) if form == "batched" else ()
    return g.op("MatMul", [x, _filters(g, (*batch, depth, width), x.dtype, depth)])


def gemm(g: Graph) -> Tensor:
    x = g.pick(FLOATS + SIGNED[:2], low=2, high=2)
    flip_a, flip_b = g.choices.integer(0, 1), g.choices.integer(0, 1)
    rows, depth = reversed(x.shape) if flip_a else x.shape
    width = g.choices.of(_WIDTHS)
    inputs = [x, _filters(g, (width, depth) if flip_b else (depth, width), x.dtype, depth)]
    if g.choices.odds(0.7) or g.opset < 11:
        shape = g.choices.of(((width,), (1, width), (rows, 1), (1,), (rows, width), ()))
        inputs.append(g.weight(g.normal(shape, x.dtype)))
    factors = {name: g.choices.of((None, 0.5, 2.0)) if x.is_float else None for name in ("alpha", "beta")}
    return g.op("Gemm", inputs, transA=flip_a or None, transB=flip_b or None, **factors)


def dense(g: Graph) -> Tensor:
    """A layer as exporters write it: MatMul, bias, activation."""
    x = g.pick(FLOATS, low=2, high=4)
    width = g.choices.of(_WIDTHS)
    y = g.op("MatMul", [x, _filters(g, (x.shape[-1], width), x.dtype, x.shape[-1])])
    y = g.op("Add", [y, g.weight(g.normal((width,), x.dtype))])
    return g.op(g.choices.of(("Relu", "Sigmoid", "Tanh")), [y])


_EQUATIONS = {
    1: ("i->", "i,i->", "i,j->ij", "i,i->i", "...i->..."),
    2: ("ij->ji", "ij,jk->ik", "ij,kj", "ij,ij->i", "ij->j", "ij,j->i", "ij,ik->jk", "i...->..."),
    3: ("bij,bjk->bik", "bij->bji", "bij,bkj->bik", "bij,jk->bik", "abc->ca", "...ij->...ji", "bij,bij->b"),
    4: ("bhid,bhjd->bhij", "abcd->adbc", "bchw,oc->bohw", "...ij,...jk->...ik", "abcd->bd"),
}


def einsum(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=1, high=4)
    equation = g.choices.of(_EQUATIONS[x.rank])
    terms = equation.partition("->")[0].split(",")
    if len(terms) == 1:
        return g.op("Einsum", [x], equation=equation)
    sizes = dict(zip(terms[0].replace("...", "."), x.shape, strict=False)) if "..." not in terms[0] else {}
    if "..." in terms[0]:
        shape = (*x.shape[:-2], x.shape[-1], g.choices.of(_WIDTHS))
    else:
        shape = tuple(sizes.setdefault(letter, g.choices.of(_WIDTHS)) for letter in terms[1])
    return g.op("Einsum", [x, _filters(g, shape, x.dtype, x.shape[-1])], equation=equation)


def window(g: Graph, x: Tensor, kernel: list[int], dilations: list[int]) -> dict[str, object]:
    """strides and padding of a window over x's spatial axes; Rejected where it does not fit once."""
    spatial = x.rank - 2
    attributes: dict[str, object] = {}
    if g.choices.odds(0.5):
        attributes["strides"] = [g.choices.of((1, 2, 3)) for _ in range(spatial)]
    pads = [0] * (2 * spatial)
    form = g.choices.of(("none", "same", "ragged", "auto"))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    if form == "auto":
        attributes["auto_pad"] = g.choices.of(("SAME_UPPER", "SAME_LOWER", "VALID"))
    elif form == "same":
        pads = [(size - 1) // 2 for size in reach] * 2
    elif form == "ragged":
        pads = [g.choices.integer(0, min(3, size - 1)) for size in reach * 2]
    if any(pads):
        attributes["pads"] = pads
    for axis, size in enumerate(reach):
        room = x.shape[2 + axis] + pads[axis] + pads[axis + spatial]
        if room < size and not str(attributes.get("auto_pad", "")).startswith("SAME"):
            raise Rejected("the window does not fit")
    return attributes


def _kernel(g: Graph, x: Tensor) -> list[int]:
    return [g.choices.of([size for size in (3, 1, 2, 5, 4) if size <= extent + 2]) for extent in x.shape[2:]]


def convolution(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=3, high=5)
    channels, spatial = x.shape[1], x.rank - 2
    kind = g.choices.of(("full", "full", "point", "depthwise", "grouped"))
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    groups = {"depthwise": channels, "grouped": g.choices.of(divisors)}.get(kind, 1)
    filters = groups * g.choices.of((1, 2, 3)) if groups > 1 else g.choices.of(_WIDTHS)
    kernel = [1] * spatial if kind == "point" else _kernel(g, x)
    dilations = [g.choices.of((1, 1, 2, 3)) for _ in range(spatial)] if g.choices.odds(0.4) else [1] * spatial
    attributes = window(g, x, kernel, dilations)
    if str(attributes.get("auto_pad", "")).startswith("SAME"):
        dilations = [1] * spatial  # ONNX Runtime takes no others
    fan = channels // groups * math.prod(kernel)
    if x.value.size // channels * filters * fan > _LARGEST_WORK:
        raise Rejected("too much work")
    if set(dilations) != {1} or g.choices.odds(0.3):
        attributes["dilations"] = dilations
    inputs = [x, _filters(g, (filters, channels // groups, *kernel), x.dtype, fan)]
    if g.choices.odds(0.6):
        inputs.append(g.weight(g.normal((filters,), x.dtype)))
    given = kernel if g.choices.odds(0.7) else None
    y = g.op("Conv", inputs, kernel_shape=given, group=groups if groups > 1 else None, **attributes)
    return g.op("Relu", [y]) if g.choices.odds(0.3) else y


def transposed(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=3, high=5)
    channels, spatial = x.shape[1], x.rank - 2
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    groups = g.choices.of(divisors) if g.choices.odds(0.4) else 1
    each = g.choices.of((1, 2, 3, 5, 8))
    kernel = [g.choices.of((3, 1, 2, 4)) for _ in range(spatial)]
    strides = [g.choices.of((2, 1, 3)) for _ in range(spatial)]
    dilations = [g.choices.of((1, 1, 2)) for _ in range(spatial)] if g.choices.odds(0.3) else [1] * spatial
    attributes: dict[str, object] = {"strides": strides}
    if set(dilations) != {1}:
        attributes["dilations"] = dilations
    form = g.choices.of(("none", "pads", "auto", "output_shape"))
    if form == "pads":
        reach = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
        attributes["pads"] = [g.choices.integer(0, min(2, size)) for size in reach * 2]
        if g.choices.odds(0.5):
            attributes["output_padding"] = [g.choices.integer(0, stride - 1) for stride in strides]
    elif form == "auto":
        attributes["auto_pad"] = g.choices.of(("SAME_UPPER", "SAME_LOWER", "VALID"))
    elif form == "output_shape":
        attributes["output_shape"] = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    fan = channels // groups * math.prod(kernel)
    if x.value.size // channels * each * groups * fan > _LARGEST_WORK:
        raise Rejected("too much work")
    inputs = [x, _filters(g, (channels, each, *kernel), x.dtype, fan)]
    if g.choices.odds(0.5):
        inputs.append(g.weight(g.normal((each * groups,), x.dtype)))
    return g.op("ConvTranspose", inputs, kernel_shape=kernel, group=groups if groups > 1 else None, **attributes)


def attention(g: Graph) -> Tensor:
    """Scaled dot products over heads, as exporters spell them out."""
    x = g.pick(FLOATS, low=3, high=3)
    batch, length, width = x.shape
    heads, depth = g.choices.of((1, 2, 3)), g.choices.of((1, 4, 5, 8))

    def split() -> Tensor:
        y = g.op("MatMul", [x, _filters(g, (width, heads * depth), x.dtype, width)])
        return g.op("Transpose", [g.reshape(y, (batch, length, heads, depth))], perm=[0, 2, 1, 3])

    query, key, value = split(), split(), split()
    scores = g.op("MatMul", [query, g.op("Transpose", [key], perm=[0, 1, 3, 2])])
    scores = g.op("Mul", [scores, g.scalar(depth**-0.5, x.dtype)])
    if g.choices.odds(0.5):
        causal = g.constant(np.tril(np.ones((length, length), bool)))
        scores = g.op("Where", [causal, scores, g.scalar(-1e4 if x.dtype != "float16" else -500, x.dtype)])
    elif g.choices.odds(0.5):
        scores = g.op("Add", [scores, g.input((batch, 1, 1, length), x.dtype)])
    mixed = g.op("MatMul", [g.op("Softmax", [scores], axis=-1 if g.opset >= 11 else 3), value])
    return g.reshape(g.op("Transpose", [mixed], perm=[0, 2, 1, 3]), (batch, length, heads * depth))


OPERATORS = (
    matmul, matmul, gemm, dense, einsum, convolution, convolution, convolution, transposed, transposed, attention,
)  # fmt: skip
