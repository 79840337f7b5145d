"""Lists the operators that no converter takes: all of them at once, with their nodes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from tvmbridge.errors import UnsupportedOperatorError
from tvmbridge.frontend.walk import STANDARD_DOMAINS, label, nodes, opset

_NODES_SHOWN = 5
# What the trace itself takes.
_TRACED = frozenset(
    {
        *("Constant", "Identity", "If", "Loop", "Scan", "Shape", "Size", "ConcatFromSequence", "SequenceAt"),
        *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    }
)
_CONTRIB_ONLY = frozenset({"Attention"})  # what TVM means by it is ONNX Runtime's operator of that name


def check_operators(model: onnx.ModelProto) -> None:
    """Raise UnsupportedOperatorError with every operator that TVM's importer has no converter for."""
    unsupported = [node for node in nodes(model) if not _has_converter(node, model)]
    if unsupported:
        raise _error(unsupported, model)


def check_known_operators(model: onnx.ModelProto) -> None:
    """Raise the same error as `check_operators` at once if an operator is foreign: no rewriting makes it supported."""
    if any(_is_foreign(node, model) for node in nodes(model)):
        check_operators(model)


def tvm_version(op_type: str, version: int) -> int | None:
    """Op-set version by whose rules TVM reads an operator of op-set `version`; None where it has no converter."""
    converter = _converters().get(op_type)
    if converter is None:
        return None
    versions = sorted(int(name.removeprefix("_impl_v")) for name in dir(converter) if name.startswith("_impl_v"))
    return max((entry for entry in versions if entry <= version), default=versions[0])


def describe(found: Iterable[onnx.NodeProto], model: onnx.ModelProto) -> tuple[str, ...]:
    """One line an operator: "domain.OpType (op-set N): node, node"."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for node in found:
        domain = "ai.onnx" if node.domain in STANDARD_DOMAINS else node.domain
        grouped.setdefault((domain, node.op_type), []).append(label(node))
    return tuple(
        f"{domain}.{op_type} (op-set {opset(model, domain) or 'not imported'}): {', '.join(names)}"
        for (domain, op_type), names in grouped.items()
    )


def _converters() -> dict[str, type]:
    from tvm.relax.frontend.onnx import onnx_frontend  # seconds to import: only when a model is there to check

    return onnx_frontend._get_convert_map()


def _is_foreign(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return not _has_converter(node, model)
    return not onnx.defs.has(node.op_type, opset(model) or 1, "")


def _has_converter(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    from tvmbridge.frontend.contrib import has_contrib
    from tvmbridge.frontend.converters import find_converter

    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    version = opset(model, domain) or 1
    if not domain and not onnx.defs.has(node.op_type, version, ""):
        return False
    if not domain and node.op_type in _TRACED:
        return True
    if find_converter(node.op_type, domain) is not None or tvm_takes(node.op_type, domain):
        return True
    return has_contrib(node.op_type, domain) or has_body(node.op_type, domain, version)


def tvm_takes(op_type: str, domain: str) -> bool:
    """Whether TVM has a converter for the operator, and means by it what ONNX does."""
    return not domain and op_type not in _CONTRIB_ONLY and op_type in _converters()


def has_body(op_type: str, domain: str, version: int) -> bool:
    """Whether ONNX defines the operator by others."""
    if not onnx.defs.has(op_type, version, domain):
        return False
    schema = onnx.defs.get_schema(op_type, version, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _error(unsupported: list[onnx.NodeProto], model: onnx.ModelProto) -> UnsupportedOperatorError:
    operators = describe(unsupported, model)
    lines = []
    for line in operators:
        head, _, names = line.partition(": ")
        shown = names.split(", ")
        more = f" and {len(shown) - _NODES_SHOWN} more" if len(shown) > _NODES_SHOWN else ""
        lines.append(f"  {head}: {', '.join(shown[:_NODES_SHOWN])}{more}")
    count = f"{len(operators)} operator{'s' * (len(operators) > 1)}"
    return UnsupportedOperatorError(
        f"{count} without a converter:\n" + "\n".join(lines),
        operators=operators,
        hint="export the model without them, or with another op-set",
    )
