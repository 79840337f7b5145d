"""Binds every dimension of the inputs: by input (`shapes`), by symbolic name (`dims`), or as the model fixes it."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Mapping, Sequence

import onnx

from tvmbridge.errors import ModelError, ShapeError


def bind_shapes(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int]
) -> onnx.ModelProto:
    """Give the inputs of `model` static shapes, in place, and forget all shapes that followed from the old ones.

    An axis of no elements is bound by `shapes` only: exporters write 0 for "unknown".
    Raises ShapeError: one for all dimensions left unbound, with a command line that binds them; one for a binding
    that names nothing in the model, contradicts it, or contradicts another binding.
    """
    inputs = {entry.name: entry for entry in model.graph.input}
    for entry in inputs.values():
        _require_tensor(entry)
    _check_names(inputs, shapes, dims)
    symbols = {name: (_size(value, f"--dim {name}", 1), f"--dim {name}={value}") for name, value in dims.items()}
    for name, shape in shapes.items():
        _bind_input(inputs[name], [_size(axis, f"--shape {name}", 0) for axis in shape], symbols)
    for entry in inputs.values():
        for axis in entry.type.tensor_type.shape.dim:
            if not _is_fixed(axis) and axis.dim_param in symbols:
                axis.dim_value = symbols[axis.dim_param][0]
    _require_bound({name: entry for name, entry in inputs.items() if name not in shapes})
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return model


def describe_inputs(inputs: Mapping[str, onnx.ValueInfoProto]) -> str:
    """The inputs with their shapes as the model has them: "x[batch,3,224,224], mask[?]"."""
    return ", ".join(f"{name}[{_render(entry)}]" for name, entry in inputs.items()) or "no inputs"


def _render(entry: onnx.ValueInfoProto) -> str:
    if not entry.type.tensor_type.HasField("shape"):
        return "unknown rank"
    return ",".join(str(a.dim_value) if _is_fixed(a) else a.dim_param or "?" for a in entry.type.tensor_type.shape.dim)


def _is_fixed(axis: onnx.TensorShapeProto.Dimension) -> bool:
    return axis.HasField("dim_value") and axis.dim_value > 0  # exporters write 0 and -1 for "unknown"


def _require_tensor(entry: onnx.ValueInfoProto) -> None:
    kind = entry.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"input {entry.name!r} is no tensor but a {(kind or 'value without type').removesuffix('_type')}",
            hint="export the model with tensors as inputs",
        )


def _check_names(
    inputs: Mapping[str, onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int]
) -> None:
    has = f"the model has {describe_inputs(inputs)}"
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise ShapeError(f"no input is called {', '.join(map(repr, unknown))}", hint=has)
    symbols = {axis.dim_param for entry in inputs.values() for axis in entry.type.tensor_type.shape.dim}
    unknown = [name for name in dims if not name or name not in symbols]
    if unknown:
        raise ShapeError(f"no dimension of an input is called {', '.join(map(repr, unknown))}", hint=has)


def _size(value: int, what: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as exc:
        raise ShapeError(f"{what}: {value!r} is no whole number") from exc
    if not least <= number < 2**31:
        raise ShapeError(f"{what}: a dimension is {least} or more, and below 2**31, not {number}")
    return number


def _bind_input(entry: onnx.ValueInfoProto, shape: list[int], symbols: dict[str, tuple[int, str]]) -> None:
    given = f"--shape {entry.name}={'x'.join(map(str, shape))}"
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.SetInParent()
        for size in shape:
            tensor.shape.dim.add().dim_value = size
        return
    if len(shape) != len(tensor.shape.dim):
        raise ShapeError(
            f"{given}: {len(shape)} dimensions, but the input has {len(tensor.shape.dim)}",
            hint=f"the model has {entry.name}[{_render(entry)}]",
        )
    for position, (axis, size) in enumerate(zip(tensor.shape.dim, shape, strict=True)):
        if _is_fixed(axis):
            if axis.dim_value != size:
                raise ShapeError(
                    f"{given}: the model fixes axis {position} of {entry.name!r} at {axis.dim_value}, not {size}",
                    hint=f"the model has {entry.name}[{_render(entry)}]",
                )
            continue
        if axis.dim_param and size:
            value, source = symbols.setdefault(axis.dim_param, (size, given))
            if value != size:
                raise ShapeError(
                    f"{given}: dimension {axis.dim_param!r} is {size} here and {value} by {source}",
                    hint="a symbolic dimension has one value wherever it stands",
                )
        axis.dim_value = size


def _require_bound(inputs: Mapping[str, onnx.ValueInfoProto]) -> None:
    unbound: list[str] = []
    flags: dict[str, None] = {}
    by_shape = [entry for entry in inputs.values() if _needs_shape(entry)]
    bound_by_shape = {axis.dim_param for entry in by_shape for axis in entry.type.tensor_type.shape.dim}
    for name, entry in inputs.items():
        tensor = entry.type.tensor_type
        if not tensor.HasField("shape"):
            unbound.append(f"{name}=?")
            flags[f"--shape {shlex.quote(name)}=<size>x<size>x..."] = None
            continue
        open_axes = [position for position, axis in enumerate(tensor.shape.dim) if not _is_fixed(axis)]
        unbound += [f"{name}[{position}]={tensor.shape.dim[position].dim_param or '?'}" for position in open_axes]
        if entry in by_shape:
            sizes = "x".join(str(axis.dim_value) if _is_fixed(axis) else "1" for axis in tensor.shape.dim)
            flags[f"--shape {shlex.quote(name)}={sizes}"] = None
            continue
        for position in open_axes:
            symbol = tensor.shape.dim[position].dim_param
            if symbol not in bound_by_shape:
                flags[f"--dim {shlex.quote(symbol)}=1"] = None
    if unbound:
        raise ShapeError(
            f"{len(unbound)} dimension{'s' * (len(unbound) > 1)} of the inputs unbound: {', '.join(unbound)}",
            dimensions=tuple(unbound),
            hint=f"bind them, for example: {' '.join(flags)}",
        )


def _needs_shape(entry: onnx.ValueInfoProto) -> bool:
    return any(not _is_fixed(axis) and not axis.dim_param for axis in entry.type.tensor_type.shape.dim)
