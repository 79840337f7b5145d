"""ONNX Runtime's own operators (domain com.microsoft), each as the standard ONNX nodes that it stands for.

Semantics: ContribOperators.md of ONNX Runtime, and what it computes where that is silent. To add an operator, add a
function that writes its body and its line in `BODIES` of one of the modules here, and a test beside ONNX Runtime.
"""

from __future__ import annotations

import onnx
import onnx.parser

from tvmbridge.frontend.contrib import attention, fused, quantised
from tvmbridge.frontend.contrib.body import Writer
from tvmbridge.frontend.operator import Operator

DOMAIN = "com.microsoft"
_OPSET = 23  # of the nodes in the bodies

_BODIES: dict[str, Writer] = {**fused.BODIES, **quantised.BODIES, **attention.BODIES}
CONTRIB_OPERATORS = tuple(sorted(_BODIES))


def has_contrib(op_type: str, domain: str) -> bool:
    """Whether the operator is one of ONNX Runtime's that has a body here."""
    return domain == DOMAIN and op_type in _BODIES


def find_contrib(op: Operator) -> onnx.FunctionProto | None:
    """The nodes that one of ONNX Runtime's operators stands for; None for any other operator."""
    if not has_contrib(op.op_type, op.domain):
        return None
    text = f'<domain: "{DOMAIN}", opset_import: ["": {_OPSET}]>\n{op.op_type} {_BODIES[op.op_type](op)}'
    return onnx.parser.parse_function(text)
