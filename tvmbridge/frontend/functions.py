"""Replaces calls of the model's own functions by the functions' bodies."""

from __future__ import annotations

import onnx
import onnx.inliner

from tvmbridge.errors import ModelError, reason


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: a model that may hold local functions. After: an equal one without."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model, True)
    except Exception as exc:  # C++: recursion, op-sets that cannot be brought together, malformed bodies
        names = ", ".join(sorted(f"{function.domain}.{function.name}" for function in model.functions))
        raise ModelError(
            f"the model's own functions cannot be expanded ({names}): {reason(exc)}",
            hint="export the model without local functions",
        ) from exc
