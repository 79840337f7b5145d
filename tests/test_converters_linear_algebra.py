"""Determinants, and products of matrices of every kind of number and without elements."""

from __future__ import annotations

import numpy as np
import pytest
from against_reference import assert_node

from tvmbridge.errors import UnsupportedOperatorError

pytestmark = pytest.mark.compiler


def drawn(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(2).normal(size=shape) * 3).astype(dtype)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_determinants_agree(size: int) -> None:
    assert_node("Det", [drawn(3, size, size)], opset=22, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_determinants_of_other_floats_agree(dtype: type) -> None:
    x = drawn(4, 4, dtype=dtype)
    assert_node("Det", [x], opset=22, expected=[np.linalg.det(x.astype(np.float64)).astype(dtype)], tolerance=3e-3)


def test_determinants_exchange_rows_and_know_singular_matrices() -> None:
    x = np.array([[[0, 1], [1, 0]], [[0, 0], [1, 2]], [[1, 2], [2, 4]]], np.float32)
    assert_node("Det", [x], opset=22, expected=[np.array([-1, 0, 0], np.float32)])


@pytest.mark.parametrize(
    ("left", "right"), [((3,), (3,)), ((3,), (3, 5)), ((2, 7, 3), (3,)), ((2, 1, 7, 3), (4, 3, 5)), ((1, 3), (3, 1))]
)
def test_matrices_and_vectors_of_every_rank_are_multiplied(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    assert_node("MatMul", [drawn(*left), drawn(*right)], opset=13)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64, np.float64])
def test_every_kind_of_number_is_multiplied(dtype: type) -> None:
    assert_node("MatMul", [np.abs(drawn(5, 7)).astype(dtype), np.abs(drawn(7, 3)).astype(dtype)], opset=13)


def test_products_of_halves_are_added_up_in_single_precision() -> None:
    x = np.full((1, 4000), 1.0, np.float16)
    assert_node("MatMul", [x, x.T.copy()], opset=13, expected=[np.array([[4000]], np.float16)])


def test_sums_of_nothing_are_zero() -> None:
    nothing, row = np.zeros((2, 0), np.float32), drawn(3)
    assert_node("MatMul", [nothing, nothing.T.copy()], opset=13)
    right = np.broadcast_to(row * np.float32(0.5), (2, 3))
    assert_node("Gemm", [nothing, np.zeros((0, 3), np.float32), row], opset=13, beta=0.5, expected=[right])


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_takes_every_form_of_its_operands(turned: tuple[int, int]) -> None:
    a, b = drawn(5, 7), drawn(7, 3)
    a, b = (a.T.copy() if turned[0] else a), (b.T.copy() if turned[1] else b)
    options = {"transA": turned[0], "transB": turned[1], "alpha": 0.5, "opset": 13}
    assert_node("Gemm", [a, b], **options)
    assert_node("Gemm", [a, b, drawn(5, 1)], beta=2.0, **options)


def test_gemm_of_integers_takes_whole_factors_and_refuses_others() -> None:
    a, b = drawn(5, 7, dtype=np.int32), drawn(7, 3, dtype=np.int32)
    assert_node("Gemm", [a, b], opset=13, alpha=2.0, expected=[2 * (a @ b)])
    with pytest.raises(UnsupportedOperatorError, match=r"the factors 0\.5 and 1"):
        assert_node("Gemm", [a, b], opset=13, alpha=0.5)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij->ji", [(3, 5)]),
        ("ii->i", [(4, 4)]),
        ("...ii ->...i", [(2, 4, 4)]),
        ("ij", [(3, 5)]),
        ("ji", [(3, 5)]),
        ("i,i->", [(5,), (5,)]),
        ("bij,bjk->bik", [(2, 3, 5), (2, 5, 4)]),
        ("bhqd,bhkd->bhqk", [(2, 3, 5, 4), (2, 3, 7, 4)]),
        ("...ij,...jk->...ik", [(2, 3, 5), (2, 5, 4)]),
        ("ij,jk", [(3, 5), (5, 4)]),
        ("Ab,bC->CA", [(3, 5), (5, 2)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("i,j->ij", [(3,), (5,)]),
        ("ij,ij->i", [(3, 5), (3, 5)]),
        ("ij,kj->ik", [(3, 1), (2, 5)]),
    ],
)
def test_every_form_of_einsum_agrees(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [drawn(*shape) for shape in shapes]
    assert_node(
        "Einsum", operands, opset=12, equation=equation, expected=[np.einsum(equation, *operands)], tolerance=1e-4
    )
