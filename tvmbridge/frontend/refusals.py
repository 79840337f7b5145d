"""Refuses what TVM's importer takes without a word and computes wrongly: one table, one row a case.

A row leaves the table when a rewrite or a converter of ours computes the case rightly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.errors import ModelError, UnsupportedOperatorError
from tvmbridge.frontend.operators import describe
from tvmbridge.frontend.walk import STANDARD_DOMAINS, graphs, nodes, tensors


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What is known about a model's values.

    constants: by name; used: names that a node reads or the graph gives; shapes: by name, static ones only.
    """

    constants: dict[str, onnx.TensorProto]
    used: frozenset[str]
    shapes: dict[str, tuple[int, ...]]

    def value(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        """The constant that `node` reads there; None where it is not constant or absent."""
        tensor = self.constants.get(_input(node, position))
        return None if tensor is None else numpy_helper.to_array(tensor)

    def is_computed(self, node: onnx.NodeProto, position: int) -> bool:
        """Whether `node` reads a value there that only the run decides."""
        return bool(_input(node, position)) and _input(node, position) not in self.constants


_Rule = Callable[[onnx.NodeProto, _Facts], bool]


def _input(node: onnx.NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _trains_batch_norm(node: onnx.NodeProto, facts: _Facts) -> bool:
    return _attribute(node, "training_mode", 0) != 0 or any(name in facts.used for name in node.output[1:])


def _trains_dropout(node: onnx.NodeProto, facts: _Facts) -> bool:
    training = facts.value(node, 2)
    return facts.is_computed(node, 2) or (training is not None and bool(training.any()))


def _uses_more_outputs(node: onnx.NodeProto, facts: _Facts) -> bool:
    return any(name in facts.used for name in node.output[1:])


def _has_computed_parameters(node: onnx.NodeProto, facts: _Facts) -> bool:
    return any(facts.is_computed(node, position) for position in (2, 3, 4))


def _has_computed_shape(node: onnx.NodeProto, facts: _Facts) -> bool:
    return facts.is_computed(node, 1)


def _detects_one_sign(node: onnx.NodeProto, _: _Facts) -> bool:
    return _attribute(node, "detect_positive", 1) != 1 or _attribute(node, "detect_negative", 1) != 1


def _is_column_row_depth(node: onnx.NodeProto, _: _Facts) -> bool:
    return _attribute(node, "mode", b"DCR") == b"CRD"


def _shifts_too_far(node: onnx.NodeProto, facts: _Facts) -> bool:
    shift = facts.value(node, 1)
    return shift is not None and bool(np.any((shift < 0) | (shift >= 8 * shift.dtype.itemsize)))


def _takes_maxima(node: onnx.NodeProto, _: _Facts) -> bool:
    return _attribute(node, "mode", b"avg") == b"max"


def _reduces_nothing(node: onnx.NodeProto, facts: _Facts) -> bool:
    return 0 in facts.shapes.get(_input(node, 0), ())


def _antialiases(node: onnx.NodeProto, _: _Facts) -> bool:
    return _attribute(node, "antialias", 0) != 0


def _scales_to_a_fraction(node: onnx.NodeProto, facts: _Facts) -> bool:
    """ONNX samples by the scale as written, TVM by output over input size: the same only where that divides."""
    shape, scales = facts.shapes.get(_input(node, 0)), facts.value(node, 2 if node.op_type == "Resize" else 1)
    if shape is None or scales is None or scales.size != len(shape):
        return False
    if _attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"align_corners":
        return False
    sizes = np.array(shape) * scales.astype(np.float64)
    return bool(np.any(np.abs(sizes - np.round(sizes)) > 1e-3))


def _samples_between(node: onnx.NodeProto, facts: _Facts) -> bool:
    """A sample right between two elements, whose coordinate TVM computes to lie above the middle."""
    given, made = facts.shapes.get(_input(node, 0)), facts.shapes.get(node.output[0])
    if _attribute(node, "mode", b"nearest") != b"nearest" or given is None or made is None:
        return False
    if _attribute(node, "nearest_mode", b"round_prefer_floor") != b"round_prefer_floor":
        return False
    if _attribute(node, "coordinate_transformation_mode", b"half_pixel") not in (b"half_pixel", b"pytorch_half_pixel"):
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


def _is_symmetric(node: onnx.NodeProto, _: _Facts) -> bool:
    return _attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"half_pixel_symmetric"


def _has_output_shape(node: onnx.NodeProto, _: _Facts) -> bool:
    return any(entry.name == "output_shape" for entry in node.attribute)


def _is_not_dense(node: onnx.NodeProto, _: _Facts) -> bool:
    return any(entry.name in ("sparse_value", "value_string", "value_strings") for entry in node.attribute)


def _inserts_from_the_end(node: onnx.NodeProto, facts: _Facts) -> bool:
    position = facts.value(node, 2)
    return position is not None and bool(np.any(position < 0))


_REDUCTIONS = ("Max", "Min", "Sum", "Mean", "Prod", "LogSumExp", "LogSum", "SumSquare", "L1", "L2")
# BatchNormalization is folded into its neighbours by the simplification, which does not look at the mode.
_BEFORE_SIMPLIFICATION: tuple[tuple[str, str, _Rule], ...] = (
    ("BatchNormalization", "training mode", _trains_batch_norm),
)
_AFTER_SIMPLIFICATION: tuple[tuple[str, str, _Rule], ...] = (
    ("BitShift", "shifts by less than 0 or by the type's width or more", _shifts_too_far),
    ("Constant", "sparse or of strings", _is_not_dense),
    ("ConvTranspose", "attribute output_shape", _has_output_shape),
    ("Dropout", "training mode", _trains_dropout),
    ("Dropout", "its mask is used", _uses_more_outputs),
    ("Expand", "the shape is computed at run time", _has_computed_shape),
    ("IsInf", "finds only one sign", _detects_one_sign),
    ("LayerNormalization", "its mean or deviation is used", _uses_more_outputs),
    ("NonMaxSuppression", "its limits are computed at run time", _has_computed_parameters),
    ("Resize", "antialias", _antialiases),
    ("RoiAlign", "mode max", _takes_maxima),
    ("Resize", "coordinates half_pixel_symmetric", _is_symmetric),
    ("Resize", "the nearest of two elements equally far away", _samples_between),
    ("Resize", "the scales give no whole size", _scales_to_a_fraction),
    ("SequenceInsert", "the position counts from the end", _inserts_from_the_end),
    ("SpaceToDepth", "mode CRD", _is_column_row_depth),
    ("Upsample", "the scales give no whole size", _scales_to_a_fraction),
    *((f"Reduce{kind}", "reduces an empty tensor", _reduces_nothing) for kind in _REDUCTIONS),
)
_NAMES_SHOWN = 5
_NARROW = frozenset(
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2", "COMPLEX", "STRING"))
)


def refuse_before_simplification(model: onnx.ModelProto) -> None:
    """Raise UnsupportedOperatorError for the cases that the simplification would hide."""
    _refuse(model, _BEFORE_SIMPLIFICATION)


def refuse_miscomputed(model: onnx.ModelProto) -> None:
    """Raise UnsupportedOperatorError for every node that would be computed wrongly; `model` has inferred shapes.

    ModelError where it holds bfloat16 tensors.
    """
    _refuse_bfloat16(model)
    _refuse(model, _AFTER_SIMPLIFICATION)


def _refuse_bfloat16(model: onnx.ModelProto) -> None:
    """TVM takes bfloat16, and then fails in code generation: it can store no vector of it."""
    found = [tensor.name for tensor in tensors(model) if tensor.data_type == onnx.TensorProto.BFLOAT16]
    found += [
        value.name
        for graph in graphs(model)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    ]
    names = list(dict.fromkeys(name for name in found if name)) or ["without name"] * bool(found)
    if names:
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        raise ModelError(
            f"bfloat16 is not supported: tensor {', '.join(map(repr, names[:_NAMES_SHOWN]))}{more}",
            hint="convert the model to float32 or float16",
        )


def _refuse(model: onnx.ModelProto, table: tuple[tuple[str, str, _Rule], ...]) -> None:
    facts = _facts(model)
    found: list[tuple[onnx.NodeProto, str]] = []
    for node in nodes(model):
        if node.domain in STANDARD_DOMAINS:
            found += [(node, why) for op_type, why, rule in table if op_type == node.op_type and rule(node, facts)]
        if any(entry.name == "to" and entry.i in _NARROW for entry in node.attribute):
            found.append((node, "casts to a type narrower than a byte, float8, complex or string"))
    if found:
        operators = tuple(f"{line}: {why}" for node, why in found for line in describe([node], model))
        raise UnsupportedOperatorError(
            "TVM would compute these wrongly:\n" + "\n".join(f"  {line}" for line in operators),
            operators=operators,
            hint="export the model in inference mode and without them",
        )


def _facts(model: onnx.ModelProto) -> _Facts:
    constants = {}
    used = {entry.name for entry in model.graph.output}
    for graph in graphs(model):
        constants.update({tensor.name: tensor for tensor in graph.initializer})
        used.update(entry.name for entry in graph.output)
        for node in graph.node:
            used.update(node.input)
            for entry in node.attribute:
                if node.op_type == "Constant" and entry.name == "value" and node.output:
                    constants[node.output[0]] = entry.t
    shapes = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return _Facts(constants, frozenset(used - {""}), shapes)
