"""Makes initializers constants: the ones also listed as inputs (old exporters list all) are no inputs any more."""

from __future__ import annotations

import onnx

_FREE_INITIALIZERS = 4  # the IR version from which on an initializer need not be an input


def drop_input_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: any model. After: no graph input has an initializer of its name. Changes `model`."""
    model.ir_version = max(model.ir_version, _FREE_INITIALIZERS)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    kept = [entry for entry in model.graph.input if entry.name not in constants]
    if len(kept) != len(model.graph.input):
        copies = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in kept]
        del model.graph.input[:]
        model.graph.input.extend(copies)
    return model
