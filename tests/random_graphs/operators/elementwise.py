"""Element by element: unary and binary operators, comparisons, logic, bits, casts, activations."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.graph import ANY, FLOATS, INTEGERS, NUMBERS, SIGNED, UNSIGNED, Graph, Rejected, Tensor

_SMOOTH = [
    "Sigmoid",
    "Tanh",
    "Erf",
    "Softplus",
    "Softsign",
    "Exp",
    "Sin",
    "Cos",
    "Tan",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Mish",
    "HardSwish",
    "HardSigmoid",
    "Elu",
    "Selu",
    "Celu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Shrink",
    "Gelu",
    "Swish",
    "Reciprocal",
]
_ATTRIBUTES = {
    "HardSigmoid": ("alpha", "beta"),
    "Elu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "Celu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Swish": ("alpha",),
}


def smooth(g: Graph) -> Tensor:
    kind = g.choices.of(_SMOOTH)
    x = g.pick(FLOATS)
    attributes: dict[str, object] = {}
    for name in _ATTRIBUTES.get(kind, ()):
        if g.choices.odds(0.6):
            attributes[name] = g.choices.of((0.5, 0.01, 1.5))
    if kind == "Shrink":
        attributes = {"lambd": g.choices.of((0.5, 1.0)), "bias": g.choices.of((0.0, 0.5))}
    if kind == "Gelu" and g.choices.odds(0.5):
        attributes["approximate"] = "tanh"
    if kind in ("Exp", "Sinh", "Cosh", "Tan", "Sin", "Cos") and np.abs(x.value).max(initial=0) > 4:
        x = g.op("Tanh", [x])
    return g.op(kind, [x], **attributes)


def with_domain(g: Graph) -> Tensor:
    """Operators that are not defined everywhere, on what is made to fit."""
    kind = g.choices.of(("Sqrt", "Log", "Asin", "Acos", "Atanh", "Acosh"))
    x = g.pick(FLOATS)
    if kind in ("Sqrt", "Log", "Acosh"):
        least = {"Sqrt": 0.0, "Log": 0.125, "Acosh": 1.25}[kind]
        if not (x.value > least).all():
            x = g.op("Add", [g.op("Abs", [x]), g.scalar(least + 0.125, x.dtype)])
    elif not (np.abs(x.value) < 0.9).all():
        x = g.op("Mul", [g.op("Tanh", [x]), g.scalar(0.875, x.dtype)])
    return g.op(kind, [x])


def stepped(g: Graph) -> Tensor:
    kind = g.choices.of(("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Relu", "Identity", "IsNaN", "IsInf"))
    if kind == "IsInf":
        ways = {"detect_negative": g.choices.integer(0, 1), "detect_positive": g.choices.integer(0, 1)}
        return g.op(kind, [g.pick(FLOATS)], **(ways if g.choices.odds(0.5) else {}))
    whole = {"Abs": NUMBERS, "Neg": FLOATS + SIGNED, "Sign": NUMBERS, "Relu": FLOATS + SIGNED, "Identity": ANY}
    return g.op(kind, [g.pick(whole.get(kind, FLOATS))])


def clip(g: Graph) -> Tensor:
    x = g.pick(NUMBERS)
    low, high = g.choices.of(((None, 1), (0, 6), (-1, None), (-1, 2), (None, None), (2, 1), (0, 3)))
    if x.dtype in UNSIGNED:
        low = None if low is None else max(0, low)
    if g.opset < 11:
        return g.op("Clip", [x], min=None if low is None else float(low), max=None if high is None else float(high))
    bounds = [None if bound is None else g.scalar(bound, x.dtype) for bound in (low, high)]
    return g.op("Clip", [x, *bounds])


def arithmetic(g: Graph) -> Tensor:
    kind = g.choices.of(("Add", "Mul", "Sub", "Div", "Add", "Mul"))
    x = g.pick(NUMBERS)
    y = g.partner(x)
    if kind == "Div" and not x.is_float:
        y = _nonzero_whole(g, x)
    elif kind == "Div" and (not y.value.all() or np.abs(y.value).min(initial=1) < 1e-3):
        y = g.op("Add", [g.op("Abs", [y]), g.scalar(0.5, y.dtype)])
    elif g.choices.odds(0.3):
        x, y = y, x
    return g.op(kind, [x, y])


def variadic(g: Graph) -> Tensor:
    kind = g.choices.of(("Max", "Min", "Sum", "Mean"))
    x = g.pick(NUMBERS if kind in ("Max", "Min") else FLOATS)
    operands = [x, *(g.partner(x) for _ in range(g.choices.of((1, 0, 2, 3))))]
    return g.op(kind, operands)


def modulus(g: Graph) -> Tensor:
    x = g.pick(NUMBERS)
    if x.is_float:
        y = g.scalar(g.choices.of((3.0, -2.0, 1.5, 0.75)), x.dtype)
        return g.op("Mod", [x, y], fmod=1 if g.opset < 24 or g.choices.odds(0.5) else None)
    return g.op("Mod", [x, _nonzero_whole(g, x)], fmod=g.choices.of((None, 0, 1)))


def _nonzero_whole(g: Graph, x: Tensor) -> Tensor:
    shape = g.broadcast_to(x.shape)
    sign = 1 if x.dtype in UNSIGNED else g.generator.choice([-1, 1], size=shape)
    return g.weight(np.asarray(g.generator.integers(1, 8, shape) * sign).astype(x.dtype))


def power(g: Graph) -> Tensor:
    x = g.pick(FLOATS + SIGNED[:2])
    exponent = g.choices.of((2.0, 3.0, 0.5, -1.0, 1.5, 0.0, 1.0))
    if not x.is_float:
        return g.op("Pow", [x, g.scalar(g.choices.of((2, 3, 0, 1)), g.choices.of((x.dtype, "float32")))])
    if exponent != round(exponent) or exponent < 0:
        x = g.op("Add", [g.op("Abs", [x]), g.scalar(0.25, x.dtype)])
    if g.choices.odds(0.3):
        x = g.op("Add", [g.op("Abs", [x]), g.scalar(0.25, x.dtype)])
        return g.op("Pow", [x, g.op("Tanh", [g.partner(x)])])
    dtype = x.dtype if g.opset < 12 or exponent != round(exponent) else g.choices.of((x.dtype, "int32", "int64"))
    return g.op("Pow", [x, g.scalar(exponent, dtype)])


def prelu(g: Graph) -> Tensor:
    x = g.pick(FLOATS + SIGNED[:2])
    if x.is_float and x.rank > 2 and g.choices.odds(0.5):
        slope = (x.shape[1], *(1 for _ in x.shape[2:]))
    else:
        slope = g.broadcast_to(x.shape)
    return g.op("PRelu", [x, g.weight(g.data(slope, x.dtype))])


def comparison(g: Graph) -> Tensor:
    kind = g.choices.of(("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"))
    x = g.pick(ANY if kind == "Equal" else NUMBERS)
    return g.op(kind, [x, g.partner(x)])


def logic(g: Graph) -> Tensor:
    kind = g.choices.of(("And", "Or", "Xor", "Not"))
    x = g.pick(("bool",))
    return g.op(kind, [x]) if kind == "Not" else g.op(kind, [x, g.partner(x)])


def bits(g: Graph) -> Tensor:
    kind = g.choices.of(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"))
    if kind == "BitShift":
        x = g.pick(UNSIGNED)
        by = g.generator.integers(0, 8, g.broadcast_to(x.shape))
        return g.op(kind, [x, g.weight(np.asarray(by).astype(x.dtype))], direction=g.choices.of(("LEFT", "RIGHT")))
    x = g.pick(INTEGERS)
    return g.op(kind, [x]) if kind == "BitwiseNot" else g.op(kind, [x, g.partner(x)])


def where(g: Graph) -> Tensor:
    x = g.pick(ANY)
    y = g.partner(x)
    if x.is_float and g.choices.odds(0.4):
        condition = g.op(g.choices.of(("Less", "Greater")), [x, y])
    else:
        shape = np.broadcast_shapes(x.shape, y.shape)
        condition = g.input(g.broadcast_to(shape), "bool") if g.choices.odds(0.5) else _mask(g, shape)
    return g.op("Where", [condition, *((x, y) if g.choices.odds(0.7) else (y, x))])


def _mask(g: Graph, shape: tuple[int, ...]) -> Tensor:
    if len(shape) >= 2 and g.choices.odds(0.5):
        return g.constant(np.tril(np.ones(shape[-2:], bool)))
    return g.weight(g.data(g.broadcast_to(shape), "bool"))


def cast(g: Graph) -> Tensor:
    x = g.pick(ANY)
    if x.dtype == "float16":  # what becomes wider again at once, ONNX Runtime never rounds to float16
        return g.cast(x, g.choices.of([dtype for dtype in ANY if dtype not in FLOATS]))
    if g.choices.odds(0.2):
        to = g.choices.of(FLOATS)
        return g.op("CastLike", [x, g.weight(g.data((2,), to))])
    return g.cast(x, g.choices.of([dtype for dtype in ANY if dtype != x.dtype]))


def composed(g: Graph) -> Tensor:
    """Activations and norms as exporters spell them out."""
    x = g.pick(FLOATS)
    kind = g.choices.of(("gelu", "silu", "tanh gelu", "layer norm", "rms norm"))
    if kind == "silu":
        return g.op("Mul", [x, g.op("Sigmoid", [x])])
    if kind == "gelu":
        erf = g.op("Erf", [g.op("Div", [x, g.scalar(2**0.5, x.dtype)])])
        return g.op("Mul", [g.op("Mul", [x, g.op("Add", [erf, g.scalar(1, x.dtype)])]), g.scalar(0.5, x.dtype)])
    if kind == "tanh gelu":
        cube = g.op("Mul", [g.op("Pow", [x, g.scalar(3, x.dtype)]), g.scalar(0.044715, x.dtype)])
        inner = g.op("Tanh", [g.op("Mul", [g.op("Add", [x, cube]), g.scalar(0.7978845608, x.dtype)])])
        return g.op("Mul", [g.op("Mul", [x, g.scalar(0.5, x.dtype)]), g.op("Add", [inner, g.scalar(1, x.dtype)])])
    if not x.rank or g.opset >= 18:
        raise Rejected("axes are an attribute here")
    centred = x if kind == "rms norm" else g.op("Sub", [x, g.op("ReduceMean", [x], axes=[-1])])
    variance = g.op("ReduceMean", [g.op("Mul", [centred, centred])], axes=[-1])
    root = g.op("Sqrt", [g.op("Add", [variance, g.scalar(1e-3, x.dtype)])])
    return g.op("Mul", [g.op("Div", [centred, root]), g.weight(g.normal(x.shape[-1:], x.dtype))])


def dropout(g: Graph) -> Tensor:
    x = g.pick(FLOATS)
    if g.opset < 12:
        return g.op("Dropout", [x], ratio=0.5)
    inputs = [x, g.scalar(0.5, "float32")] if g.choices.odds(0.5) else [x]
    return g.ops("Dropout", inputs, g.choices.integer(1, 2))[0]


OPERATORS = (
    smooth, smooth, smooth, with_domain, stepped, stepped, clip, arithmetic, arithmetic, arithmetic, variadic,
    modulus, power, prelu, comparison, comparison, logic, bits, where, where, cast, cast, composed, dropout,
)  # fmt: skip
# What IEEE arithmetic says of NaN and infinity, and ONNX Runtime follows.
WITH_SPECIALS = (arithmetic, comparison, where, stepped)
