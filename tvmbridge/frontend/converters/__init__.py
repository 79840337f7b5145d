"""Our own converters of ONNX operators into Relax, a family in each module, found here.

A converter takes an Operator and gives the expression of its result, or one for each result (None for one that nothing
reads); None alone says that it does not take this form of the operator: then the function body that ONNX defines for
it is traced, or TVM's converter is asked. To add an operator, add a function and its line in `CONVERTERS`, or a module
with both, and its test. Keys are "OpType" for ONNX's own operators, "domain.OpType" for others.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from tvmbridge.frontend.operator import Converter


@functools.cache
def _converters() -> dict[str, Converter]:
    found: dict[str, Converter] = {}
    for module in pkgutil.iter_modules(__path__):
        entries = getattr(importlib.import_module(f"{__name__}.{module.name}"), "CONVERTERS", {})
        twice = found.keys() & entries.keys()
        if twice:
            raise ValueError(f"two converters of {', '.join(sorted(twice))}")
        found.update(entries)
    return found


def find_converter(op_type: str, domain: str = "") -> Converter | None:
    """The converter of an operator; None where there is none of our own."""
    return _converters().get(f"{domain}.{op_type}" if domain else op_type)
