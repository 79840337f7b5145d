"""Says how far one program's outputs are from another's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from tvmbridge.bundle.manifest import Accuracy
from tvmbridge.signature import ModelSignature

TOLERANCE = 1e-3
_FLOAT16_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """One output, reference against actual.

    max_absolute: max|a-b|; max_relative: max|a-b| / max|reference|: relative to the output's scale, as an error
    relative to each element says nothing near zero; cosine: of the two as vectors. All over the finite elements,
    in float64; infinite (cosine 0) where `mismatch` is set, which says why no number can say how far they are.
    warning: why a small error proves little here; None where it proves something.
    """

    name: str
    max_absolute: float
    max_relative: float
    cosine: float
    mismatch: str | None = None
    warning: str | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All outputs of one run, or of several after `merge_comparisons`. samples: how many runs."""

    outputs: tuple[OutputComparison, ...]
    samples: int = 1

    @property
    def worst(self) -> OutputComparison:
        """The output that differs most."""
        return max(self.outputs, key=lambda output: (output.max_relative, -output.cosine))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes this comparison prove less than it seems, by output."""
        return tuple(f"{output.name}: {output.warning}" for output in self.outputs if output.warning)

    def passes(self, tolerance: float = TOLERANCE) -> bool:
        """Whether no output mismatches and every max_relative is at most `tolerance`."""
        return all(output.mismatch is None and output.max_relative <= tolerance for output in self.outputs)

    def accuracy(self, reference: str, tolerance: float = TOLERANCE) -> Accuracy | None:
        """The worst figures over all outputs, as the manifest keeps them; reference: program and version.

        None where a figure is not finite, which JSON cannot say: an output mismatches, or one is off where the
        reference is all zeros.
        """
        accuracy = Accuracy(
            max_absolute=max(output.max_absolute for output in self.outputs),
            max_relative=max(output.max_relative for output in self.outputs),
            cosine=min(output.cosine for output in self.outputs),
            tolerance=tolerance,
            reference=reference,
            samples=self.samples,
        )
        figures = (accuracy.max_absolute, accuracy.max_relative, accuracy.cosine)
        return accuracy if all(map(math.isfinite, figures)) else None


def default_tolerance(signature: ModelSignature, precision: str = "float32") -> float:
    """The limit of max_relative that a model is held to where nobody names one.

    1e-3; 1e-2 where an output or what is computed (precision: of the target) is float16, whose steps are 1e-3 of a
    value: a few of them add up in any network.
    """
    in_float16 = precision == "float16" or any(spec.dtype == "float16" for spec in signature.outputs)
    return _FLOAT16_TOLERANCE if in_float16 else TOLERANCE


def compare_outputs(
    reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], signature: ModelSignature
) -> Comparison:
    """Compare the outputs that `signature` names. Integers and booleans must be equal, NaN and infinity in place."""
    return Comparison(tuple(_compare(spec.name, reference, actual) for spec in signature.outputs))


def merge_comparisons(comparisons: Iterable[Comparison]) -> Comparison:
    """Several runs of one model as one: the worst of each output. A warning stays only if every run has it."""
    runs = list(comparisons)
    merged = []
    for outputs in zip(*(run.outputs for run in runs), strict=True):
        merged.append(
            OutputComparison(
                name=outputs[0].name,
                max_absolute=max(output.max_absolute for output in outputs),
                max_relative=max(output.max_relative for output in outputs),
                cosine=min(output.cosine for output in outputs),
                mismatch=next((output.mismatch for output in outputs if output.mismatch), None),
                warning=outputs[0].warning if all(output.warning for output in outputs) else None,
            )
        )
    return Comparison(tuple(merged), sum(run.samples for run in runs))


def _mismatch(name: str, why: str) -> OutputComparison:
    return OutputComparison(name, float("inf"), float("inf"), 0.0, mismatch=why)


def _compare(name: str, reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> OutputComparison:
    for what, outputs in (("the reference", reference), ("this program", actual)):
        if name not in outputs:
            return _mismatch(name, f"{what} does not give it")
    expected, got = np.asarray(reference[name]), np.asarray(actual[name])
    if expected.shape != got.shape:
        return _mismatch(name, f"shape {got.shape} instead of {expected.shape}")
    if expected.dtype != got.dtype:
        return _mismatch(name, f"dtype {got.dtype} instead of {expected.dtype}")
    if expected.dtype.kind in "biu":
        return _compare_exactly(name, expected, got)
    return _compare_numbers(name, expected.astype(np.float64), got.astype(np.float64))


def _compare_exactly(name: str, expected: np.ndarray, got: np.ndarray) -> OutputComparison:
    wrong = int(np.count_nonzero(expected != got))
    if wrong:
        return _mismatch(name, f"{wrong} of {expected.size} elements of type {expected.dtype} are not equal")
    return OutputComparison(name, 0.0, 0.0, 1.0, warning=_warning(expected))


def _compare_numbers(name: str, expected: np.ndarray, got: np.ndarray) -> OutputComparison:
    finite = np.isfinite(expected)
    odd = ~(finite & np.isfinite(got))
    if not np.array_equal(expected[odd], got[odd], equal_nan=True):
        wrong = int(np.count_nonzero(~((expected == got) | (np.isnan(expected) & np.isnan(got))) & odd))
        return _mismatch(name, f"{wrong} of {expected.size} elements are NaN or infinite in one of the two only")
    warning = _warning(expected)
    expected, got = expected[finite], got[finite]
    if not expected.size:
        return OutputComparison(name, 0.0, 0.0, 1.0, warning=warning)
    absolute = float(np.max(np.abs(expected - got)))
    scale = float(np.max(np.abs(expected)))
    relative = 0.0 if absolute == 0 else absolute / scale if scale > 0 else float("inf")
    return OutputComparison(name, absolute, relative, _cosine(expected, got), warning=warning)


def _cosine(expected: np.ndarray, got: np.ndarray) -> float:
    """Of two vectors of finite float64, each scaled to 1 first so that no square overflows; 1 where both are zero."""
    scales = [float(np.max(np.abs(vector))) for vector in (expected, got)]
    if 0.0 in scales:
        return 1.0 if scales == [0.0, 0.0] else 0.0
    a, b = expected.reshape(-1) / scales[0], got.reshape(-1) / scales[1]
    return float(np.clip(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def _warning(expected: np.ndarray) -> str | None:
    if expected.size == 0:
        return "empty: proves nothing"
    finite = expected[np.isfinite(expected)]
    if not finite.size:
        return "no finite element: proves nothing"
    if expected.size > 1 and np.all(finite == finite[0]):
        return "every element is equal: proves nothing"
    return None
