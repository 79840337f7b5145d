"""Forms of operators that TVM's converters take without a word and compute wrongly: one table, one row a case.

A row leaves the table when a converter of ours computes the case rightly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvmbridge.frontend.operator import Operator, static_shape

_Rule = Callable[[Operator], bool]


def why_miscomputed(op: Operator) -> str | None:
    """What TVM would get wrong of this node; None where it is right."""
    if op.domain:
        return None
    return next((why for op_type, why, rule in _TABLE if op_type == op.op_type and rule(op)), None)


def _trains_batch_norm(op: Operator) -> bool:
    return op.attribute("training_mode", 0) != 0 or any(op.used[1:])


def _trains_dropout(op: Operator) -> bool:
    training = op.constant(2)
    return _is_computed(op, 2) or (training is not None and bool(training.any()))


def _uses_more_outputs(op: Operator) -> bool:
    return any(op.used[1:])


def _has_computed_parameters(op: Operator) -> bool:
    return any(_is_computed(op, position) for position in (2, 3, 4))


def _has_computed_shape(op: Operator) -> bool:
    return _is_computed(op, 1)


def _is_column_row_depth(op: Operator) -> bool:
    return op.attribute("mode", "DCR") == "CRD"


def _takes_maxima(op: Operator) -> bool:
    return op.attribute("mode", "avg") == "max"


def _reduces_nothing(op: Operator) -> bool:
    return 0 in op.shape(0)


def _antialiases(op: Operator) -> bool:
    return op.attribute("antialias", 0) != 0


def _scales_to_a_fraction(op: Operator) -> bool:
    """ONNX samples by the scale as written, TVM by output over input size: the same only where that divides."""
    shape, scales = op.shape(0), op.constant(2 if op.op_type == "Resize" else 1)
    if shape is None or scales is None or scales.size != len(shape):
        return False
    if op.attribute("coordinate_transformation_mode", "half_pixel") == "align_corners":
        return False
    sizes = np.array(shape) * scales.astype(np.float64)
    return bool(np.any(np.abs(sizes - np.round(sizes)) > 1e-3))


def _samples_between(op: Operator) -> bool:
    """A sample right between two elements, whose coordinate TVM computes to lie above the middle."""
    given, made = op.shape(0), static_shape(op.results[0])
    if op.attribute("mode", "nearest") != "nearest" or given is None or made is None:
        return False
    if op.attribute("nearest_mode", "round_prefer_floor") != "round_prefer_floor":
        return False
    if op.attribute("coordinate_transformation_mode", "half_pixel") not in ("half_pixel", "pytorch_half_pixel"):
        return False
    return any(_rounds_otherwise(old, new) for old, new in zip(given, made, strict=True))


def _rounds_otherwise(old: int, new: int) -> bool:
    """Whether TVM's float32 coordinates of `new` samples on `old` elements round to others than exact ones do."""
    index = np.arange(new)
    exact = -((new - (2 * index + 1) * old + new) // (2 * max(new, 1)))  # ceil((index + 1/2) * old / new - 1)
    product = (index + 0.5) * np.float64(np.float32(old) / np.float32(max(new, 1)))
    for coordinate in (product.astype(np.float32) - np.float32(0.5), (product - 0.5).astype(np.float32)):
        if np.any(np.ceil(coordinate - np.float32(0.5)) != exact):  # by compiler, the two steps round once or twice
            return True
    return False


def _is_symmetric(op: Operator) -> bool:
    return op.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric"


def _has_output_shape(op: Operator) -> bool:
    return "output_shape" in op.attributes


def _is_computed(op: Operator, position: int) -> bool:
    """Whether the operand there is one that only the run decides."""
    return op.has(position) and op.constant(position) is None


_REDUCTIONS = ("Max", "Min", "Sum", "Mean", "Prod", "LogSumExp", "LogSum", "SumSquare", "L1", "L2")
_TABLE: tuple[tuple[str, str, _Rule], ...] = (
    ("BatchNormalization", "training mode", _trains_batch_norm),
    ("ConvTranspose", "attribute output_shape", _has_output_shape),
    ("Dropout", "training mode", _trains_dropout),
    ("Dropout", "its mask is used", _uses_more_outputs),
    ("Expand", "the shape is computed at run time", _has_computed_shape),
    ("LayerNormalization", "its mean or deviation is used", _uses_more_outputs),
    ("NonMaxSuppression", "its limits are computed at run time", _has_computed_parameters),
    ("Resize", "antialias", _antialiases),
    ("RoiAlign", "mode max", _takes_maxima),
    ("Resize", "coordinates half_pixel_symmetric", _is_symmetric),
    ("Resize", "the nearest of two elements equally far away", _samples_between),
    ("Resize", "the scales give no whole size", _scales_to_a_fraction),
    ("SpaceToDepth", "mode CRD", _is_column_row_depth),
    ("Upsample", "the scales give no whole size", _scales_to_a_fraction),
    *((f"Reduce{kind}", "reduces an empty tensor", _reduces_nothing) for kind in _REDUCTIONS),
)
