"""Finds the first operator of a model that the compiled program computes otherwise than ONNX Runtime."""

from tvmbridge.bisect.bisect import bisect_model
from tvmbridge.bisect.check import Check
from tvmbridge.bisect.search import Finding

__all__ = ["Check", "Finding", "bisect_model"]
