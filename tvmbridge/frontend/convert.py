"""Hands the prepared ONNX graph to TVM's importer and checks what comes back."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings

import onnx
import tvm
from onnx import helper
from tvm import relax

from tvmbridge.errors import ModelError, UnsupportedOperatorError, reason
from tvmbridge.frontend.converters import import_graph
from tvmbridge.frontend.index_limits import find_index_limits
from tvmbridge.frontend.operators import describe
from tvmbridge.frontend.parameter_names import name_parameters
from tvmbridge.frontend.walk import label
from tvmbridge.signature import ModelSignature, TensorSpec

_INTEGERS = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_DTYPES = _INTEGERS | {"bool", "float16", "float32", "float64"}


def convert(model: onnx.ModelProto) -> tuple[tvm.IRModule, ModelSignature]:
    """Import `model` into Relax; the signature keeps the ONNX names, main has them by position.

    Raises UnsupportedOperatorError or ModelError naming the node that TVM's converter fails on, and ModelError where
    a shape is known only at run time or TVM's output differs in shape or dtype from what onnx inferred.
    """
    limits = find_index_limits(model.graph, [entry.name for entry in model.graph.input], certain=True)
    inputs = tuple(_input_spec(entry, limits.get(entry.name)) for entry in model.graph.input)
    module = _import(model)
    main = module["main"]
    if len(main.params) != len(inputs):
        raise ModelError(f"TVM's importer made {len(main.params)} inputs of {len(inputs)}")
    _require_static(main, model)
    outputs = _output_specs(main, model)
    return name_parameters(module), ModelSignature(inputs, outputs)


def _dtype(entry: onnx.ValueInfoProto, kind: str) -> str:
    try:
        name = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type).name
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"{kind} {entry.name!r} has no element type") from exc
    if name not in _DTYPES:
        name = onnx.TensorProto.DataType.Name(entry.type.tensor_type.elem_type).lower()
        raise ModelError(
            f"{kind} {entry.name!r} has elements of type {name}",
            hint=f"supported are {', '.join(sorted(_DTYPES))}",
        )
    return name


def _input_spec(entry: onnx.ValueInfoProto, index_limit: int | None) -> TensorSpec:
    shape = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
    dtype = _dtype(entry, "input")
    return TensorSpec(entry.name, shape, dtype, index_limit if dtype in _INTEGERS else None)


def _import(model: onnx.ModelProto) -> tvm.IRModule:
    try:
        # The importer prints what it fails on and warns of each name that it changes: this is a library.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return import_graph(model)
    except Exception as exc:  # converters raise whatever their Python or TVM's C++ raises
        node = _failed_node(exc)
        if node is None:
            raise ModelError(f"TVM's importer fails: {reason(exc)}") from exc
        raise UnsupportedOperatorError(
            f"TVM's importer fails on {node.op_type} {label(node)!r}: {reason(exc)}",
            operators=describe([node], model),
            hint="this form of the operator is not supported: export the model without it, or with another op-set",
        ) from exc


def _failed_node(exc: Exception) -> onnx.NodeProto | None:
    """The node at work when the importer raised: its exceptions do not say, but the innermost loop variable does."""
    found = None
    for frame, _ in traceback.walk_tb(exc.__traceback__):
        node = frame.f_locals.get("node")
        if frame.f_code.co_name in ("_construct_nodes", "_convert_subgraph") and isinstance(node, onnx.NodeProto):
            found = node
    return found


def _is_static(ty: object) -> bool:
    if isinstance(ty, relax.TupleType):
        return all(_is_static(field) for field in ty.fields)
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        return False
    return isinstance(ty.shape, relax.ShapeExpr) and all(isinstance(axis, tvm.tirx.IntImm) for axis in ty.shape.values)


def _require_static(main: relax.Function, model: onnx.ModelProto) -> None:
    types = [main.ret_ty, *(param.ty for param in main.params)]
    if isinstance(main.body, relax.SeqExpr):
        types += [binding.var.ty for block in main.body.blocks for binding in block.bindings]
    if all(_is_static(ty) or isinstance(ty, relax.ShapeType) for ty in types[1:]) and _is_static(types[0]):
        return
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    first = next(
        (node for node in model.graph.node if any(name and _is_open(values.get(name)) for name in node.output)), None
    )
    where = f"{first.op_type} {label(first)!r}" if first is not None else "a node"
    raise ModelError(
        f"the shape that {where} gives is known only at run time",
        hint="export the model so that every shape follows from the shapes of the inputs",
    )


def _is_open(value: onnx.ValueInfoProto | None) -> bool:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return True
    return any(not axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)


def _output_specs(main: relax.Function, model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    entries = list(model.graph.output)
    types = [main.ret_ty] if len(entries) == 1 else list(main.ret_ty.fields)
    specs = []
    for entry, ty in zip(entries, types, strict=True):
        spec = TensorSpec(entry.name, tuple(int(axis) for axis in ty.shape.values), _dtype(entry, "output"))
        inferred = [axis.dim_value for axis in entry.type.tensor_type.shape.dim]
        if str(ty.dtype) != spec.dtype or (not _is_open(entry) and tuple(inferred) != spec.shape):
            raise ModelError(
                f"output {entry.name!r} would be {ty.dtype}{list(spec.shape)} in TVM, {spec.dtype}{inferred} in ONNX",
                hint="an operator before it is imported wrongly: please report the model",
            )
        specs.append(spec)
    return tuple(specs)
