"""Infers the shapes and types of all values."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from tvmbridge.errors import ModelError, reason
from tvmbridge.frontend.attribute_limits import check_attributes
from tvmbridge.frontend.sizes import check_sizes, follows_values
from tvmbridge.frontend.walk import nodes
from tvmbridge.frontend.weights import attach_weights, detach_weights


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: inputs with static shapes. After: an equal model with value_info for whatever onnx can infer.

    The given model loses its weights to the new one: protobuf keeps what it was once given until a model is gone, and
    two models with weights would be one too many in memory. Raises ModelError where the shapes contradict each other,
    or a tensor would be absurdly large.
    """
    check_attributes(nodes(model))
    weights = detach_weights(model)
    _spell_out_defaults(model)
    try:
        sized = onnx.shape_inference.infer_shapes(model)
        check_sizes(sized)
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=follows_values(sized)
        )
        check_sizes(inferred)
    except onnx.shape_inference.InferenceError as exc:
        raise ModelError(
            f"the shapes do not fit together: {' '.join(str(exc).split())[:400]}",
            hint="check the shapes that were bound; if they are right, export the model again",
        ) from exc
    except ModelError:
        raise
    except Exception as exc:  # C++: whatever else a malformed graph leads to
        raise ModelError(f"onnx cannot infer the model's shapes: {reason(exc)}", hint="export it again") from exc
    return attach_weights(inferred, weights)


_DEFAULTS = {"MeanVarianceNormalization": ("axes", [0, 2, 3]), "STFT": ("onesided", 1)}


def _spell_out_defaults(model: onnx.ModelProto) -> None:
    """Attributes in whose absence onnx infers another shape than the operator's definition says, or fails."""
    for node in nodes(model):
        name, default = _DEFAULTS.get(node.op_type, ("", None))
        if name and not any(entry.name == name for entry in node.attribute):
            node.attribute.append(onnx.helper.make_attribute(name, default))
