"""Gives every Constant its tensor in the attribute `value`, the only one that TVM's importer reads."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmbridge.frontend.walk import STANDARD_DOMAINS, nodes

_DTYPES = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


def normalise_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: any model. After: no Constant with value_int(s) or value_float(s). Changes `model`."""
    for node in nodes(model):
        if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS:
            continue
        for attribute in node.attribute:
            if attribute.name in _DTYPES:
                data = np.array(helper.get_attribute_value(attribute), _DTYPES[attribute.name])
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(data)))
    return model
