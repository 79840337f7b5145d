"""Operators that ONNX Runtime's optimiser fuses out of standard ones: activations, products, norms, embeddings."""

from __future__ import annotations

from tvmbridge.frontend.contrib.body import Writer, activated, body, integers, number, transposed
from tvmbridge.frontend.operator import Operator


def _gelu(op: Operator) -> str:
    return body("x", "y", "y = Gelu (x)")


def _bias_gelu(op: Operator) -> str:
    return body("x, bias", "y", "sum = Add (x, bias)", "y = Gelu (sum)")


def _fast_gelu(op: Operator) -> str:
    biased = "sum = Add (x, bias)" if op.has(1) else "sum = Identity (x)"
    return body("x, bias", "y", biased, 'y = Gelu <approximate = "tanh"> (sum)')


def _quick_gelu(op: Operator) -> str:
    """x σ(αx)."""
    alpha = number("number", op.attribute("alpha", 1.702))
    lines = "alpha = CastLike (number, x)", "scaled = Mul (x, alpha)", "gate = Sigmoid (scaled)", "y = Mul (x, gate)"
    return body("x", "y", alpha, *lines)


def _order(op: Operator, position: int, side: str) -> list[int]:
    """The axes of an operand of FusedMatMul as a product wants them: batch axes, rows, columns."""
    rank = len(op.shape(position))
    axes = list(range(rank))
    if rank > 2 and op.attribute(f"transBatch{side}", 0):
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if rank > 1 and op.attribute(f"trans{side}", 0):
        axes[-2:] = axes[:-3:-1]
    return axes


def _matmul(op: Operator) -> str:
    """αAB, of operands whose last two axes, or first, may come transposed."""
    return body(
        "a, b",
        "y",
        transposed("left", "a", _order(op, 0, "A")),
        transposed("right", "b", _order(op, 1, "B")),
        "product = MatMul (left, right)",
        number("number", op.attribute("alpha", 1.0)),
        "alpha = CastLike (number, a)",
        "y = Mul (product, alpha)",
    )


def _gemm(op: Operator) -> str:
    factors = ", ".join(f"{name}: float = {float(op.attribute(name, 1.0))!r}" for name in ("alpha", "beta"))
    sides = ", ".join(f"{name}: int = {op.attribute(name, 0)}" for name in ("transA", "transB"))
    kind = op.attribute("activation", "")
    parameters = op.attribute("activation_alpha"), op.attribute("activation_beta")
    last = activated(op, "y", "sum", kind, *parameters) if kind else "y = Identity (sum)"
    return body("a, b, c", "y", f"sum = Gemm <{factors}, {sides}> (a, b, c)", last)


_CONV_LISTS = ("dilations", "kernel_shape", "pads", "strides")


def _conv(op: Operator) -> str:
    """Convolution, then a tensor of the result's shape added, then an activation."""
    settings = [f"{name}: ints = {list(op.attribute(name))}" for name in _CONV_LISTS if op.attribute(name)]
    settings += [
        f"group: int = {op.attribute('group', 1)}",
        f'auto_pad: string = "{op.attribute("auto_pad", "NOTSET")}"',
    ]
    kind, parameters = op.attribute("activation", ""), tuple(op.attribute("activation_params", ()))
    alpha, beta = (*parameters, None, None)[:2]
    last = activated(op, "y", "sum", kind, alpha, beta) if kind else "y = Identity (sum)"
    added = "sum = Add (made, z)" if op.has(3) else "sum = Identity (made)"
    return body("x, w, b, z", "y", f"made = Conv <{', '.join(settings)}> (x, w, b)", added, last)


def _refuse_statistics(op: Operator) -> None:
    if any(op.used[1:3]):
        op.refuse("its mean or deviation is used, which ONNX Runtime gives on no CPU")


def _skip_norm(norm: str, parameters: str) -> Writer:
    """A norm of the sum of two tensors and a bias; the sum is a result too. parameters: the norm's, by name."""
    bias = 2 + len(parameters.split(", "))

    def write(op: Operator) -> str:
        _refuse_statistics(op)
        added = "sum = Add (pair, bias)" if op.has(bias) else "sum = Identity (pair)"
        epsilon = float(op.attribute("epsilon", 1e-12))
        last = f"y = {norm} <axis = -1, epsilon: float = {epsilon!r}> (sum, {parameters})"
        return body(f"x, skip, {parameters}, bias", "y, mean, deviation, sum", "pair = Add (x, skip)", added, last)

    return write


def _embedding(op: Operator) -> str:
    """Rows of the tables of words, positions and segments, added and normed; and how many tokens the mask lets pass."""
    batch, length = op.shape(0)
    lines = ["rows = Gather (words, ids)"]
    if op.has(8):
        lines.append("places = Gather (positions, position_ids)")
    else:
        lines += [integers("first", [0]), integers("last", [length]), "places = Slice (positions, first, last, first)"]
    lines.append("pair = Add (rows, places)")
    if op.has(1):
        lines += ["kinds = Gather (segments, segment_ids)", "sum = Add (pair, kinds)"]
    else:
        lines.append("sum = Identity (pair)")
    epsilon = float(op.attribute("epsilon", 1e-12))
    lines.append(f"y = LayerNormalization <axis = -1, epsilon: float = {epsilon!r}> (sum, scale, offset)")
    if op.has(7):
        lines += [integers("along", [1]), "counted = ReduceSum <keepdims = 0> (mask, along)"]
    else:
        lines.append(integers("counted", [0] * batch))
    lines.append("count = Cast <to = 6> (counted)")
    inputs = "ids, segment_ids, words, positions, segments, scale, offset, mask, position_ids"
    return body(inputs, "y, count, sum", *lines)


def _expand_dims(op: Operator) -> str:
    return body("x, axis", "y", "y = Unsqueeze (x, axis)")


def _trilu(op: Operator) -> str:
    return body("x, k", "y", f"y = Trilu <upper = {op.attribute('upper', 1)}> (x, k)")


def _gather_nd(op: Operator) -> str:
    return body("x, indices", "y", "y = GatherND (x, indices)")


def _range(op: Operator) -> str:
    return body("first, last, step", "y", "y = Range (first, last, step)")


def _pad(op: Operator) -> str:
    return body("x, pads, value", "y", f'y = Pad <mode = "{op.attribute("mode", "constant")}"> (x, pads, value)')


BODIES: dict[str, Writer] = {
    "BiasGelu": _bias_gelu,
    "EmbedLayerNormalization": _embedding,
    "ExpandDims": _expand_dims,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Pad": _pad,
    "QuickGelu": _quick_gelu,
    "Range": _range,
    "SkipLayerNormalization": _skip_norm("LayerNormalization", "scale, offset"),
    "SkipSimplifiedLayerNormalization": _skip_norm("RMSNormalization", "scale"),
    "TransposeMatMul": _matmul,
    "Trilu": _trilu,
}
