"""Where the graph meets the program: inputs and outputs as tensors of the signature, as traced values, as bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from tvm import relax

from tvmbridge.errors import ModelError
from tvmbridge.frontend.index_limits import find_index_limits
from tvmbridge.frontend.narrow_types import decode, encode
from tvmbridge.frontend.operator import CARRIERS, Missing, Tensor, Value, element_type, numpy_type, static_shape
from tvmbridge.frontend.sequence_values import element_name, kind_of
from tvmbridge.signature import TensorSpec

_INDICES = frozenset({"int32", "int64", "uint32", "uint64", "int8", "uint8", "int16", "uint16"})


def stored(builder: relax.BlockBuilder, tensor: Tensor) -> relax.Expr:
    """A result as it leaves the program: bits, of a type that is computed in a wider one."""
    return encode(builder, tensor.expr, tensor.dtype) if tensor.dtype in CARRIERS else tensor.expr


def storage(dtype: str) -> str:
    """The dtype of the bits that an input or output of an ONNX element type consists of."""
    return f"uint{8 * numpy_type(dtype).itemsize}" if dtype in CARRIERS else dtype


def input_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """The graph's inputs, whose shapes are static, with the limits of those that are used as indices."""
    limits = find_index_limits(graph, [entry.name for entry in graph.input], certain=True)
    specs = []
    for entry in graph.input:
        dtype = _named_type(entry, "input")
        shape = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
        specs.append(TensorSpec(entry.name, shape, dtype, limits.get(entry.name) if dtype in _INDICES else None))
    return tuple(specs)


def _named_type(entry: onnx.ValueInfoProto, kind: str) -> str:
    try:
        return element_type(entry.type.tensor_type.elem_type)
    except ModelError as exc:
        raise ModelError(f"{kind} {entry.name!r}: {exc.message}", hint=exc.hint) from None


def traced_input(builder: relax.BlockBuilder, spec: TensorSpec, param: relax.Var) -> Tensor:
    """A parameter of the program as the trace sees it."""
    if 0 in spec.shape:
        return Tensor.known(np.empty([axis or 0 for axis in spec.shape], numpy_type(spec.dtype)))
    expr = decode(builder, param, spec.dtype) if spec.dtype in CARRIERS else param
    return Tensor(expr, spec.dtype, inputs=frozenset({spec.name}))


def output_tensors(
    entry: onnx.ValueInfoProto, scope: Mapping[str, Value]
) -> Iterator[tuple[onnx.ValueInfoProto, Tensor]]:
    """A graph output; each tensor by itself where it is a sequence or an optional."""
    value = scope.get(entry.name)
    spreads = kind_of(entry) in ("sequence", "optional")
    if isinstance(value, Tensor) and not spreads:
        yield entry, value
        return
    if value is None or isinstance(value, Missing) or not spreads:
        kind = "is made by no node" if value is None else f"is no {kind_of(entry)} with a value"
        raise ModelError(f"output {entry.name!r} {kind}", hint="export the model with tensors as outputs")
    for position, item in enumerate((value,) if isinstance(value, Tensor) else value.items):
        yield onnx.ValueInfoProto(name=element_name(entry.name, position)), item


def output_spec(entry: onnx.ValueInfoProto, tensor: Tensor) -> TensorSpec:
    """A result in the signature; raises ModelError where the graph declares another type or shape."""
    wanted = _named_type(entry, "output") if entry.type.tensor_type.elem_type else tensor.dtype
    shape = static_shape(entry.type)
    if tensor.dtype != wanted or (shape is not None and shape != tensor.shape):
        raise ModelError(
            f"output {entry.name!r} would be {tensor.dtype}{list(tensor.shape)}, {wanted}{list(shape or ())} in ONNX",
            hint="an operator before it is imported wrongly: please report the model",
        )
    return TensorSpec(entry.name, tensor.shape, tensor.dtype)
