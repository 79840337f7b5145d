"""Compares a variant's outputs with ONNX Runtime's."""

from tvmbridge.verify.compare import TOLERANCE, Comparison, OutputComparison, compare_outputs, merge_comparisons
from tvmbridge.verify.inputs import random_inputs, read_inputs
from tvmbridge.verify.reference import ReferenceSession

__all__ = [
    "TOLERANCE",
    "Comparison",
    "OutputComparison",
    "ReferenceSession",
    "compare_outputs",
    "merge_comparisons",
    "random_inputs",
    "read_inputs",
]
