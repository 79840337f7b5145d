"""TVM's own converters, for the operators and forms that they compute rightly."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from tvmbridge.errors import is_interrupt, reason
from tvmbridge.frontend.operator import Operator, Tensor
from tvmbridge.frontend.operators import tvm_takes

_DECIDES_NO_SHAPE = 1024  # elements: a tensor of more is data


def convert(op: Operator) -> list[relax.Expr] | None:
    """The results by TVM's converter; None where TVM has none. Refuses what it fails on."""
    if not tvm_takes(op.op_type, op.domain):
        return None
    inputs = onnx_frontend.onnx_input()
    # What is known but was not folded is large, and the converters would compute it with NumPy if they saw it.
    known = all(value is None or (isinstance(value, Tensor) and value.array is not None) for value in op.operands)
    for position, value in enumerate(op.operands):
        if value is not None and not isinstance(value, Tensor):
            op.refuse(f"its input {position} is no tensor")
        expr = None if value is None else value.expr
        hidden = known and isinstance(value, Tensor) and math.prod(value.shape) > _DECIDES_NO_SHAPE
        inputs.append(op.emit(expr) if hidden else expr)
    try:
        # The importer prints what it fails on and warns of names: this is a library.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            result = _call(op, inputs)
            result = result if isinstance(result, relax.Tuple) else op.builder.normalize(result)
    except Exception as exc:  # converters raise whatever their Python or TVM's C++ raises
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        op.refuse(f"TVM's importer fails on it: {reason(exc)}")
    if isinstance(result, relax.Tuple):
        return list(result.fields)
    if isinstance(result.ty, relax.TupleType):
        bound = op.emit(result)
        return [op.emit(relax.TupleGetItem(bound, index)) for index in range(len(result.ty.fields))]
    return [result]


def _call(op: Operator, inputs: Any) -> relax.Expr:
    importer = onnx_frontend.ONNXGraphImporter({}, "float32")
    attributes = importer._parse_attr(op.node.attribute)
    attributes["tvm_custom"] = {"name": op.name, "num_outputs": len(op.node.output)}
    converter = onnx_frontend._get_convert_map()[op.op_type].get_converter(op.opset)
    return converter(op.builder, inputs, attributes, [{}, {}])
