"""compare_outputs: what counts as equal, and what a comparison proves."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.verify import Comparison, compare_outputs, default_tolerance, merge_comparisons


def signature(*arrays: np.ndarray) -> ModelSignature:
    specs = (TensorSpec(f"y{i}", array.shape, array.dtype.name) for i, array in enumerate(arrays))
    return ModelSignature((), tuple(specs))


def compare(*pairs: tuple[np.ndarray, np.ndarray]) -> Comparison:
    references, actuals = zip(*pairs, strict=True)
    return compare_outputs(
        {f"y{i}": array for i, array in enumerate(references)},
        {f"y{i}": array for i, array in enumerate(actuals)},
        signature(*references),
    )


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_equal_outputs_pass_without_a_warning():
    comparison = compare((normal(3, 5), normal(3, 5)), (np.arange(7), np.arange(7)))
    assert comparison.passes(0.0)
    assert comparison.warnings == ()
    assert [output.cosine for output in comparison.outputs] == pytest.approx([1.0, 1.0])


def test_errors_are_relative_to_the_scale_of_the_output():
    reference = np.array([1e-9, -4.0, 2.0])
    (output,) = compare((reference, reference + np.array([1e-3, 0.0, -2e-3]))).outputs
    assert output.max_absolute == pytest.approx(2e-3)
    assert output.max_relative == pytest.approx(2e-3 / 4)


@given(scale=st.floats(1e-30, 1e30), error=st.floats(1e-6, 1e-1), seed=st.integers(0, 99))
def test_scaling_both_sides_changes_neither_relative_error_nor_cosine(scale, error, seed):
    reference = normal(17, seed=seed, dtype=np.float64)
    actual = reference + error * normal(17, seed=seed + 1000, dtype=np.float64)
    (plain,) = compare((reference, actual)).outputs
    (scaled,) = compare((reference * scale, actual * scale)).outputs
    assert scaled.max_relative == pytest.approx(plain.max_relative, rel=1e-6)
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-9)


def test_huge_values_overflow_nothing():
    reference = np.array([1e300, -1e300, 5e299])
    (output,) = compare((reference, reference * (1 + 1e-6))).outputs
    assert output.max_relative == pytest.approx(1e-6, rel=1e-3)
    assert output.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sums_are_taken_in_float64(dtype):
    reference = normal(100_003, dtype=dtype)
    (output,) = compare((reference, reference)).outputs
    assert output.cosine == pytest.approx(1.0, abs=1e-12)


def test_the_worst_output_is_named():
    good, bad = normal(4), normal(4, seed=1)
    comparison = compare((good, good), (bad, bad * 1.01), (good, good * 1.001))
    assert comparison.worst.name == "y1"
    assert comparison.worst.max_relative == pytest.approx(0.01, rel=1e-3)
    assert not comparison.passes(1e-3) and comparison.passes(0.02)


@pytest.mark.parametrize(
    ("reference", "actual", "word"),
    [
        (normal(2, 3), normal(3, 2), r"shape \(3, 2\) instead of \(2, 3\)"),
        (normal(2), normal(2).astype(np.float64), "dtype float64 instead of float32"),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), "1 of 3 elements of type int64"),
        (np.array([True, False]), np.array([True, True]), "1 of 2 elements of type bool"),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "NaN or infinite"),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), "NaN or infinite"),
        (np.array([1.0, np.inf]), np.array([1.0, -np.inf]), "NaN or infinite"),
        (np.array([1.0, np.inf]), np.array([1.0, 3e38]), "NaN or infinite"),
    ],
)
def test_what_no_tolerance_covers_is_a_mismatch(reference, actual, word):
    comparison = compare((reference, actual))
    assert not comparison.passes(float("inf"))
    assert re.search(word, comparison.worst.mismatch or "")


def test_an_output_that_one_side_lacks_is_a_mismatch():
    wanted = signature(normal(2))
    assert "this program" in str(compare_outputs({"y0": normal(2)}, {}, wanted).worst.mismatch)
    assert "the reference" in str(compare_outputs({}, {"y0": normal(2)}, wanted).worst.mismatch)


def test_nan_and_infinity_in_the_same_places_are_equal():
    reference = np.array([np.nan, np.inf, -np.inf, 1.0, 2.0])
    comparison = compare((reference, reference.copy()))
    assert comparison.passes(0.0)
    assert comparison.outputs[0].max_absolute == 0.0


def test_a_reference_of_zeros_is_met_only_by_zeros():
    zeros = np.zeros(3)
    assert compare((zeros, zeros)).passes(0.0)
    off = compare((zeros, zeros + 1e-12))
    assert off.outputs[0].max_relative == float("inf") and off.outputs[0].cosine == 0.0
    assert not off.passes(1.0)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.full((3, 4), 0.25), "every element is equal"),
        (np.array([np.nan, 2.0, 2.0]), "every element is equal"),
        (np.full(3, np.nan), "no finite element"),
        (np.zeros((0, 3)), "empty"),
        (np.zeros(5, np.int64), "every element is equal"),
    ],
)
def test_an_output_without_variety_is_flagged(array, word):
    comparison = compare((array, array.copy()))
    assert comparison.passes()
    assert len(comparison.warnings) == 1
    assert word in comparison.warnings[0] and "proves nothing" in comparison.warnings[0]


def test_a_scalar_and_varied_output_is_not_flagged():
    assert compare((np.array(3.0), np.array(3.0)), (normal(9), normal(9))).warnings == ()


def test_the_manifest_gets_the_worst_of_all_outputs_and_samples():
    first = compare((normal(5), normal(5) * 1.01), (normal(5), normal(5)))
    second = compare((normal(5), normal(5)), (normal(5), normal(5) * 1.1))
    merged = merge_comparisons([first, second])
    accuracy = merged.accuracy("onnxruntime 1.0", 1e-3)
    assert accuracy is not None
    assert accuracy.samples == 2 and accuracy.tolerance == 1e-3 and accuracy.reference == "onnxruntime 1.0"
    assert accuracy.max_relative == pytest.approx(0.1, rel=1e-3)
    assert merged.worst.name == "y1"
    assert not merged.passes(0.05) and merged.passes(0.11)


def test_a_warning_of_one_sample_is_lifted_by_another():
    constant, varied = np.zeros(3), normal(3)
    assert merge_comparisons([compare((constant, constant)), compare((varied, varied))]).warnings == ()
    assert len(merge_comparisons([compare((constant, constant))] * 2).warnings) == 1


@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        (normal(2), normal(3)),
        (np.zeros(3), np.ones(3)),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array([1, 2]), np.array([1, 3])),
    ],
)
def test_figures_that_are_not_finite_are_no_accuracy(reference, actual):
    merged = merge_comparisons([compare((normal(5), normal(5)), (reference, actual))])
    assert merged.accuracy("onnxruntime 1.0") is None
    assert not merged.passes()


def test_what_is_computed_in_float16_is_held_to_less():
    signature = ModelSignature((), (TensorSpec("y", (2,), "float32"),))
    assert default_tolerance(signature, "float32") == 1e-3
    assert default_tolerance(signature, "float16") == 1e-2


@pytest.mark.parametrize(
    ("dtypes", "tolerance"),
    [
        (("float32",), 1e-3),
        (("float64", "int64", "bool"), 1e-3),
        (("float16",), 1e-2),
        (("float32", "float16"), 1e-2),
    ],
)
def test_float16_outputs_are_held_to_less(dtypes, tolerance):
    outputs = tuple(TensorSpec(f"y{i}", (2,), dtype) for i, dtype in enumerate(dtypes))
    inputs = (TensorSpec("x", (2,), "float16"),)
    assert default_tolerance(ModelSignature(inputs, outputs)) == tolerance
