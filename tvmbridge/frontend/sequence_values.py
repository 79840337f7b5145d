"""Spreads sequences and optionals among a graph's inputs and outputs into tensors: a compiled model has only those.

A sequence "x" of two tensors is the inputs "x[0]" and "x[1]", an optional with a value is what it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from tvmbridge.errors import ModelError, ShapeError

Lengths = Mapping[str, "int | None"]


def element_name(name: str, position: int) -> str:
    """What a tensor of a sequence is called."""
    return f"{name}[{position}]"


def elements_of(name: str, names: Collection[str]) -> list[str]:
    """Those of the names that are the tensors of a sequence, in order."""
    found: list[str] = []
    while (element := element_name(name, len(found))) in names:
        found.append(element)
    return found


def kind_of(entry: onnx.ValueInfoProto) -> str:
    """ "tensor", "sequence" or "optional"; "value without type" where it has none."""
    return (entry.type.WhichOneof("value") or "value without type").removesuffix("_type")


def spread_inputs(model: onnx.ModelProto, lengths: Lengths) -> onnx.ModelProto:
    """Before: any model. After: no input is a sequence or an optional. Changes `model`.

    lengths: of each sequence, and of each optional one, its tensors, None for an optional without a value; an optional
    tensor with a value has length 1. Raises ShapeError where one is missing or names no such input.
    """
    entries = [entry for entry in model.graph.input if kind_of(entry) in ("sequence", "optional")]
    unknown = lengths.keys() - {entry.name for entry in entries}
    if unknown:
        raise ShapeError(
            f"no input that is a sequence or an optional is called {', '.join(map(repr, sorted(unknown)))}"
        )
    missing = [entry for entry in entries if entry.name not in lengths]
    if missing:
        named = ", ".join(f"{entry.name!r} is no tensor but a {kind_of(entry)}" for entry in missing)
        raise ShapeError(
            f"input {named}, whose length must be known",
            dimensions=tuple(f"{entry.name}[...]" for entry in missing),
            hint="give the lengths to import_onnx, or export the model with tensors as inputs",
        )
    if not entries:
        return model
    inputs: list[onnx.ValueInfoProto] = []
    nodes: list[onnx.NodeProto] = []
    for entry in model.graph.input:
        if entry.name in lengths:
            given, made = _spread(entry, lengths[entry.name])
            inputs += given
            nodes += made
        else:
            inputs.append(entry)
    nodes += model.graph.node
    _replace(model.graph.input, inputs)
    _replace(model.graph.node, nodes)
    return model


def _spread(entry: onnx.ValueInfoProto, length: int | None) -> tuple[list[onnx.ValueInfoProto], list[onnx.NodeProto]]:
    """The tensors that stand for an input, and the nodes that make it of them."""
    name, held = entry.name, entry.type
    if kind_of(entry) == "optional":
        held = entry.type.optional_type.elem_type
        if length is None:
            return [], [helper.make_node("Optional", [], [name], type=held)]
        if held.HasField("tensor_type"):
            only = element_name(name, 0)
            return [helper.make_value_info(only, held)], [helper.make_node("Optional", [only], [name])]
    if length is None:
        raise ShapeError(f"input {name!r} is a sequence: its length is a number")
    sequence = f"{name}[]" if held is not entry.type else name
    element = held.sequence_type.elem_type
    if not element.HasField("tensor_type"):
        raise ModelError(f"input {name!r} is no sequence of tensors", hint="export the model with tensors as inputs")
    names = [element_name(name, position) for position in range(length)]
    dtype = element.tensor_type.elem_type
    nodes = [
        helper.make_node("SequenceConstruct", names, [sequence])
        if names
        else helper.make_node("SequenceEmpty", [], [sequence], dtype=dtype)
    ]
    if sequence != name:
        nodes.append(helper.make_node("Optional", [sequence], [name]))
    for axis in element.tensor_type.shape.dim:
        axis.ClearField("dim_param")  # each tensor may be of another shape
    return [helper.make_value_info(each, element) for each in names], nodes


def spread_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Before: any model. After: its outputs are tensors of these names, the elements of sequences. Changes `model`."""
    outputs: list[onnx.ValueInfoProto] = []
    for entry in model.graph.output:
        kind, made = kind_of(entry), entry.name
        if kind not in ("sequence", "optional"):
            outputs.append(entry)
            continue
        held = entry.type
        if kind == "optional":
            held, made = entry.type.optional_type.elem_type, f"{entry.name}[]"
            model.graph.node.append(helper.make_node("OptionalGetElement", [entry.name], [made]))
        for position, name in enumerate(elements_of(entry.name, names)):
            if held.HasField("tensor_type"):
                model.graph.node.append(helper.make_node("Identity", [made], [name]))
                outputs.append(helper.make_value_info(name, held))
                continue
            model.graph.node.extend(_take(made, name, position))
            outputs.append(helper.make_value_info(name, held.sequence_type.elem_type))
    _replace(model.graph.output, outputs)
    return model


def _take(sequence: str, name: str, position: int) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Constant", [], [f"{name}.position"], value_int=position)
    yield helper.make_node("SequenceAt", [sequence, f"{name}.position"], [name])


def with_tensors(source: Path | onnx.ModelProto, lengths: Lengths, names: Collection[str]) -> Path | onnx.ModelProto:
    """What a reference runs in place of `source`: a copy with tensors for inputs and, of these names, for outputs."""
    model = onnx.load(source) if isinstance(source, Path) else source
    if all(kind_of(entry) == "tensor" for entry in (*model.graph.input, *model.graph.output)):
        return source
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return spread_outputs(spread_inputs(copy, lengths), names)


def _replace(field: Any, entries: Sequence[Any]) -> None:
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)
