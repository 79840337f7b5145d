"""Writes the pads of dilated convolutions that are padded to the same extent: onnxscript forgets the dilation there."""

from __future__ import annotations

import onnx
from onnx import helper

from tvmbridge.frontend.walk import graphs


def spell_out_pads(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: inferred shapes. After: the same model, with pads in place of auto_pad on convolutions with dilations."""
    for graph in graphs(model):
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for entry in (*graph.input, *graph.value_info):
            shapes[entry.name] = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
        for node in graph.node:
            if node.op_type in ("Conv", "ConvInteger") and not node.domain:
                _spell_out(node, shapes.get(node.input[0], ())[2:], shapes.get(node.input[1], ())[2:])
    return model


def _spell_out(node: onnx.NodeProto, given: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    dilations, auto_pad = attributes.get("dilations", []), attributes.get("auto_pad", b"")
    if auto_pad not in (b"SAME_UPPER", b"SAME_LOWER") or max(dilations, default=1) == 1:
        return
    if 0 in (*given, *kernel) or not len(given) == len(kernel) == len(dilations):
        return
    before, after = [], []
    for extent, taps, dilation, stride in zip(
        given, kernel, dilations, attributes.get("strides", [1] * len(given)), strict=True
    ):
        pad = max(0, (-(-extent // stride) - 1) * stride + (taps - 1) * dilation + 1 - extent)
        first = pad // 2 if auto_pad == b"SAME_UPPER" else pad - pad // 2
        before.append(first)
        after.append(pad - first)
    kept = [entry for entry in node.attribute if entry.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", before + after)])
