"""Settles how many windows a pool has where onnx infers others than ONNX Runtime gives.

auto_pad SAME decides the extent alone, VALID is pads of 0, and what would be a last window beyond the elements is none:
of the op-sets before 22, onnx counts it.
"""

from __future__ import annotations

import onnx
import onnx.shape_inference
from onnx import helper

from tvmbridge.frontend.walk import graphs, nodes

_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})


def settle_pool_extents(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: static inputs. After: the same model, whose pools say by pads alone how many windows they have."""
    while any(_is_open(node) for node in nodes(model)):
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:  # C++: a malformed graph, of which `infer_shapes` says more
            return model
        if not _settle_all(model, inferred):
            return model
    return model


def _is_open(node: onnx.NodeProto) -> bool:
    settings = {entry.name: entry for entry in node.attribute}
    rounds_up = "ceil_mode" in settings and settings["ceil_mode"].i
    return node.op_type in _POOLS and bool(rounds_up or ("auto_pad" in settings and settings["auto_pad"].s == b"VALID"))


def _settle_all(model: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    shapes = {}
    for graph in graphs(inferred):
        for entry in (*graph.input, *graph.value_info, *graph.output):
            shapes[entry.name] = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
    changed = False
    for node in nodes(model):
        if node.op_type in _POOLS and not node.domain:
            changed |= _settle(node, shapes.get(node.input[0], ())[2:])
    return changed


def _settle(pool: onnx.NodeProto, given: tuple[int, ...]) -> bool:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in pool.attribute}
    auto_pad, rounds_up = attributes.get("auto_pad", b"NOTSET"), attributes.get("ceil_mode", 0)
    if auto_pad == b"VALID":
        _drop(pool, "auto_pad", "pads")
        return True
    if auto_pad != b"NOTSET":
        if rounds_up:
            _drop(pool, "ceil_mode")
        return bool(rounds_up)
    kernel = attributes.get("kernel_shape", [])
    if not rounds_up or len(given) != len(kernel) or 0 in given:
        return False
    strides, dilations = (attributes.get(name) or [1] * len(given) for name in ("strides", "dilations"))
    pads = list(attributes.get("pads") or [0] * 2 * len(given))
    missing = []
    for axis, extent in enumerate(given):
        first, last = pads[axis], pads[len(given) + axis]
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        whole, rest = divmod(extent + first + last - reach, strides[axis])
        begins = (whole + 1) * strides[axis]  # the window that only ceil_mode adds
        missing.append(0 if not rest else strides[axis] - rest if begins < extent + first else -1)
    if -1 not in missing:
        return False
    if max(missing) > 0:
        if pool.op_type == "AveragePool" and attributes.get("count_include_pad", 0):
            return False  # elements of such pads would be counted: the import refuses the pool
        for axis, count in enumerate(missing):
            pads[len(given) + axis] += max(count, 0)
    _drop(pool, "ceil_mode", "pads")
    pool.attribute.append(helper.make_attribute("pads", pads))
    return True


def _drop(node: onnx.NodeProto, *names: str) -> None:
    kept = [entry for entry in node.attribute if entry.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
