"""Compares a variant's outputs with ONNX Runtime's."""

from tvmbridge.verify.compare import (
    TOLERANCE,
    Comparison,
    OutputComparison,
    compare_outputs,
    default_tolerance,
    merge_comparisons,
)
from tvmbridge.verify.inputs import random_inputs, read_inputs
from tvmbridge.verify.reference import ReferenceSession, ReferenceUnavailable

__all__ = [
    "TOLERANCE",
    "Comparison",
    "OutputComparison",
    "ReferenceSession",
    "ReferenceUnavailable",
    "compare_outputs",
    "default_tolerance",
    "merge_comparisons",
    "random_inputs",
    "read_inputs",
]
