"""Attention and losses, which are traced through the function bodies that ONNX defines them by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from against_reference import assert_node

pytestmark = pytest.mark.compiler


def drawn(*shape: int, dtype: type = np.float32, seed: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mask_without_first_row(dtype: type) -> np.ndarray:
    allowed = np.random.default_rng(9).random((5, 7)) < 0.6
    allowed[0], allowed[1:, 0] = False, True
    return allowed if dtype is np.bool_ else np.where(allowed, 0, -np.inf).astype(dtype)


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": 1},
    "scaled and capped": {"scale": 0.3, "softcap": 1.5},
    "a mask of truths": {"mask": np.bool_},
    "a mask of numbers, causal": {"mask": np.float32, "is_causal": 1},
    "half precision": {"dtype": np.float16, "is_causal": 1, "tolerance": 2e-3},
    "scores": {"outputs": 4, "softcap": 2.0, "qk_matmul_output_mode": 1},
    "probabilities": {"outputs": 4, "mask": np.bool_, "qk_matmul_output_mode": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_of_four_axes_and_fewer_heads_of_keys_agrees(form: str) -> None:
    options = {"dtype": np.float32, "mask": None, "outputs": 1, **FORMS[form]}
    dtype, mask, outputs = (options.pop(name) for name in ("dtype", "mask", "outputs"))
    arrays: list[np.ndarray | None] = [drawn(2, 4, 5, 8, dtype=dtype), drawn(2, 2, 7, 8, dtype=dtype, seed=9)]
    arrays.append(drawn(2, 2, 7, 3, dtype=dtype, seed=10))
    if mask is not None:
        arrays.append(mask_without_first_row(mask))
    assert_node("Attention", arrays, opset=24, outputs=outputs, **options)


def test_attention_of_three_axes_takes_the_past_and_gives_the_present() -> None:
    arrays = [drawn(2, 5, 24), drawn(2, 3, 24, seed=9), drawn(2, 3, 12, seed=10), None]
    past = [drawn(2, 3, 4, 8, seed=11), drawn(2, 3, 4, 4, seed=12)]
    heads = {"q_num_heads": 3, "kv_num_heads": 3, "is_causal": 1}
    assert_node("Attention", [*arrays, *past], opset=24, outputs=3, **heads)


def test_attention_leaves_out_the_padding_of_a_cache() -> None:
    arrays = [drawn(2, 3, 2, 8), drawn(2, 3, 7, 8, seed=9), drawn(2, 3, 7, 8, seed=10)]
    assert_node("Attention", [*arrays, None, None, None, np.array([7, 1])], opset=24, is_causal=1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("op_type", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_losses_ignore_a_label_that_is_no_class(op_type: str, reduction: str) -> None:
    x, labels = drawn(3, 5, 2), np.random.default_rng(9).integers(0, 5, (3, 2))
    labels[0, 1], labels[2, 0] = -100, -100
    weights = np.abs(drawn(5, seed=10))
    assert_node(op_type, [x, labels, weights], opset=13, reduction=reduction, ignore_index=-100)


def test_a_loss_gives_its_logarithms_too() -> None:
    labels = np.random.default_rng(9).integers(0, 5, (3, 2), np.int32)
    assert_node("SoftmaxCrossEntropyLoss", [drawn(3, 5, 2), labels], opset=13, outputs=2)
