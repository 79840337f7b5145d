"""Evaluates nodes whose operands are all known, with ONNX's reference: shape arithmetic disappears."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx
from onnx import helper

from tvmbridge.errors import reason
from tvmbridge.frontend.operator import (
    Missing,
    Operator,
    Tensor,
    TensorSequence,
    element_type,
    known_arrays,
    numpy_type,
    static_shape,
)
from tvmbridge.frontend.sizes import GROWING

_logger = logging.getLogger(__name__)
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_GROWTH = 2  # how many times larger than its operands a result may be …
_SMALL_BYTES = 1 << 16  # … unless it is smaller than this
_MOST_BYTES = 1 << 30  # that all results together may have beyond twice the weights
_HEAVY = frozenset(  # in the reference: loops over elements, in Python
    {
        *("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GRU", "GridSample", "LSTM", "LpPool"),
        *("MaxPool", "MaxRoiPool", "QLinearConv", "RNN", "Resize", "RoiAlign", "Upsample"),
    }
)


class Folder:
    """Folds the nodes of one graph, and remembers how much it has made.

    weights_bytes: of the graph. What is made may take twice as much, and 1 GiB; then only small values are folded.
    """

    def __init__(self, weights_bytes: int) -> None:
        self._left_bytes = _MOST_BYTES + 2 * weights_bytes

    def fold(self, op: Operator, opsets: dict[str, int]) -> tuple[Tensor | TensorSequence, ...] | None:
        """The values of the node's outputs; None where they are not decidable, or too large to be worth shipping."""
        if op.domain or op.op_type in _RANDOM or any(isinstance(value, Missing) for value in op.operands):
            return None
        if op.op_type == "Shape":
            first, last = op.attribute("start", 0), op.attribute("end")
            return (Tensor.known(np.array(op.shape(0), np.int64)[first:last]),)
        if op.op_type == "Size":
            return (Tensor.known(np.array(math.prod(op.shape(0)), np.int64)),)
        empty = _empty(op)
        if empty is not None:
            return empty
        arrays = known_arrays([value for value in op.operands if isinstance(value, Tensor)])
        if arrays is None or len(arrays) != len([value for value in op.operands if value is not None]):
            return None
        has_body = any(entry.HasField("g") for entry in op.node.attribute)
        if has_body or not _is_worth_it(op, arrays, self._left_bytes):
            return None
        made = _evaluate(op, opsets)
        self._left_bytes -= sum(map(_size_bytes, made or ()))
        return made


def _size_bytes(value: Tensor | TensorSequence) -> int:
    items = value.items if isinstance(value, TensorSequence) else (value,)
    return sum(item.array.nbytes for item in items if item.array is not None)


def _empty(op: Operator) -> tuple[Tensor, ...] | None:
    """Results without elements need no computing."""
    if not op.results or op.op_type in ("If", "Loop", "Scan"):
        return None
    shapes = [shape for result in op.results if (shape := static_shape(result)) is not None]
    if len(shapes) != len(op.results) or any(0 not in shape for shape in shapes):
        return None
    types = [numpy_type(op.result_type(k)) for k in range(len(shapes))]
    return tuple(Tensor.known(np.empty(shape, dtype)) for shape, dtype in zip(shapes, types, strict=True))


def _is_worth_it(op: Operator, arrays: list[np.ndarray], left_bytes: int) -> bool:
    given = sum(array.nbytes for array in arrays)
    if op.op_type in _HEAVY and given > _SMALL_BYTES:
        return False
    made = 0
    for result in op.results:
        shape = static_shape(result)
        if shape is not None:
            made += math.prod(shape) * 8
        elif op.op_type in GROWING:
            return False
    return made <= max(_SMALL_BYTES, min(2 * _GROWTH * given, left_bytes))


def _evaluate(op: Operator, opsets: dict[str, int]) -> tuple[Tensor | TensorSequence, ...] | None:
    from onnx.reference import ReferenceEvaluator  # half a second to import

    inputs, feeds = [], {}
    for name, value in zip(op.node.input, op.operands, strict=True):
        if isinstance(value, Tensor) and value.array is not None and name not in feeds:
            number = helper.np_dtype_to_tensor_dtype(value.array.dtype)
            inputs.append(helper.make_tensor_value_info(name, number, value.shape))
            feeds[name] = value.array
    names = [name for name in op.node.output if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph([op.node], "node", inputs, outputs)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports)
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, feeds)
    except Exception as exc:  # the reference lacks an operator or a form of it: the converters may have it
        _logger.debug("%s is not folded: %s", op.name, reason(exc))
        return None
    made = dict(zip(names, found, strict=True))
    values = [_value(op, position, made.get(name)) for position, name in enumerate(op.node.output)]
    return None if any(value is None for value in values) else tuple(values)  # type: ignore[arg-type]


def _value(op: Operator, position: int, found: object) -> Tensor | TensorSequence | None:
    if found is None:
        return Tensor.known(np.empty(0, np.float32))  # an output that nobody asks for
    result = op.results[position] if position < len(op.results) else None
    if isinstance(found, list):
        items = tuple(Tensor.known(np.asarray(item)) for item in found)
        return TensorSequence(items, items[0].dtype if items else "float32")
    array = np.asarray(found)
    if result is not None and result.HasField("tensor_type"):
        wanted = element_type(result.tensor_type.elem_type)
        shape = static_shape(result)
        if array.dtype.name != wanted or (shape is not None and shape != array.shape):
            _logger.debug("%s is not folded: the reference gives %s%s", op.name, array.dtype, array.shape)
            return None
    return Tensor.known(array)
