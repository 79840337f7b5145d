"""Which steps of a random graph prove something: those whose result rounding errors do not decide."""

from __future__ import annotations

import numpy as np

# Relative to the scale of an output: what two right programs may differ by. Steps of each dtype: 1e-3, 1e-7, 2e-16.
TOLERANCE = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}
# What a rounding operator may be off by: of the value, in programs that round elsewhere or approximate otherwise.
_NOISE = {"float16": 5e-4, "float32": 1e-6, "float64": 1e-11}
_LARGEST = {"float16": 1e3, "float32": 1e6, "float64": 1e9, "int32": 2**20, "int64": 2**40}

# These give values that they were given, or values that every program rounds alike.
_EXACT = frozenset(
    [
        "Abs",
        "And",
        "ArgMax",
        "ArgMin",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "CastLike",
        "Ceil",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Equal",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "Identity",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Round",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
        "Xor",
        "QuantizeLinear",
        "Range",
        "CenterCropPad",
        "Clip",
    ]
)
# These are exact on small whole numbers, whatever the order.
_EXACT_ON_WHOLE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Sum",
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "CumSum",
        "ReduceSum",
        "ReduceL1",
        "ReduceSumSquare",
        "ReduceProd",
        "DequantizeLinear",
        "Col2Im",
        "LeakyRelu",
        "PRelu",
        "ThresholdedRelu",
        "Mod",
    ]
)


def add_noise(operators: frozenset[str], value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What another program, right too, might have got where these operators give `value`."""
    if value.dtype.name not in _NOISE or operators <= _EXACT:
        return value
    finite = np.where(np.isfinite(value), value, 0).astype("float64")
    if operators <= _EXACT | _EXACT_ON_WHOLE and np.array_equal(finite, np.round(finite)):
        return value
    size = _NOISE[value.dtype.name] * (np.abs(finite) + 0.3 * np.abs(finite).max(initial=0.0))
    return np.asarray(value + generator.uniform(-1.0, 1.0, value.shape) * size).astype(value.dtype)


def perturb_input(value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Data with relative errors; whole numbers stay what they are."""
    if value.dtype.name not in _NOISE:
        return value
    size = np.where(value == np.round(value), 0.0, _NOISE[value.dtype.name])
    return np.asarray(value * (1 + size * generator.uniform(-1.0, 1.0, value.shape))).astype(value.dtype)


def why_ill(value: np.ndarray, moved: np.ndarray, *, specials: bool) -> str | None:
    """Why this result proves nothing: too large, or another one where its operands moved by rounding errors.

    specials: NaN and infinity are wanted.
    """
    if value.shape != moved.shape:
        return "the shape depends on rounding"
    name = value.dtype.name
    if not value.size:
        return None
    if name not in TOLERANCE:
        if name in _LARGEST and max(abs(int(value.max())), abs(int(value.min()))) > _LARGEST[name]:
            return "large numbers"
        return None if np.array_equal(value, moved) else "rounding decides"
    finite = np.isfinite(value)
    if not specials and not finite.all():
        return "not finite"
    if not np.array_equal(value[~finite], moved[~finite], equal_nan=True) or not np.isfinite(moved[finite]).all():
        return "rounding decides"
    if not finite.any():
        return "nothing finite"
    a, b = value[finite].astype("float64"), moved[finite].astype("float64")
    scale = float(np.abs(a).max())
    if scale > _LARGEST[name]:
        return "large numbers"
    if scale < 1e-12 and scale > 0:
        return "small numbers"
    return "ill-conditioned" if float(np.abs(a - b).max()) > TOLERANCE[name] * scale / 4 else None


def differs(reference: np.ndarray, actual: np.ndarray) -> str | None:
    """How the compiled model's output differs by more than its tolerance; None where it agrees."""
    if reference.shape != actual.shape:
        return f"shape {actual.shape} instead of {reference.shape}"
    if reference.dtype != actual.dtype:
        return f"dtype {actual.dtype} instead of {reference.dtype}"
    name = reference.dtype.name
    if name not in TOLERANCE:
        wrong = np.count_nonzero(reference != actual)
        return f"{wrong} of {reference.size} elements of {name}" if wrong else None
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], actual[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        wrong = np.count_nonzero(np.isfinite(actual) != finite)
        return f"{wrong} of {reference.size} elements are NaN or infinite in one only"
    a, b = reference[finite].astype("float64"), actual[finite].astype("float64")
    error, scale = (float(np.abs(each).max(initial=0.0)) for each in (a - b, a))
    if error <= TOLERANCE[name] * scale:
        return None
    wrong = np.count_nonzero(np.abs(a - b) > TOLERANCE[name] * scale)
    return f"{wrong} of {reference.size} elements of {name}, by up to {error:.2g} where the largest is {scale:.2g}"
