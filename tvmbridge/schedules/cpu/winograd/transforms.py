"""The transforms of Winograd's minimal filtering, F(2×2, 3×3) and F(4×4, 3×3), on vectors and on weights.

A tile of m × m outputs is Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, of the filter g and the (m + 2) × (m + 2) inputs d: (m + 2)²
multiplications instead of 9 m². Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.

The tile of 4 is interpolated at 0, ±2/3, ±3/2 and ∞. How exact it is depends on the points (Barabasz and others, "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020): with these the greatest
error is a quarter of that with the usual 0, ±1, ±2 and ∞, for as many operations, because their product is 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WINDOW = 3

# Of anything that can be added and multiplied: arrays, or expressions of vectors.
Values = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Transform:
    """F(tile × tile, 3 × 3), as what is done along one axis; along both it is done to the columns, then to the rows.

    size: inputs of a tile along one axis, and points of its transform.
    filter: G, (size, 3). input: Bᵀ d. output: Aᵀ m.
    """

    tile: int
    filter: tuple[tuple[float, float, float], ...]
    input: Callable[[Values], list[Any]]
    output: Callable[[Values], list[Any]]

    @property
    def size(self) -> int:
        """Points along one axis."""
        return self.tile + WINDOW - 1

    @property
    def points(self) -> int:
        """Multiplications of a tile, for each pair of an input and an output channel."""
        return self.size**2


def _input_of_2(d: Values) -> list[Any]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output_of_2(m: Values) -> list[Any]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


_NEAR, _FAR = 2 / 3, 3 / 2


def _input_of_4(d: Values) -> list[Any]:
    # Points of both signs share their even and their odd half.
    near_even, near_odd = d[4] - d[2] * _FAR**2, d[3] - d[1] * _FAR**2
    far_even, far_odd = d[4] - d[2] * _NEAR**2, d[3] - d[1] * _NEAR**2
    return [
        d[0] + d[4] - d[2] * (_NEAR**2 + _FAR**2),
        near_even + near_odd * _NEAR,
        near_even - near_odd * _NEAR,
        far_even + far_odd * _FAR,
        far_even - far_odd * _FAR,
        d[1] + d[5] - d[3] * (_NEAR**2 + _FAR**2),
    ]


def _output_of_4(m: Values) -> list[Any]:
    near_even, near_odd, far_even, far_odd = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + near_even + far_even,
        near_odd * _NEAR + far_odd * _FAR,
        near_even * _NEAR**2 + far_even * _FAR**2,
        m[5] + near_odd * _NEAR**3 + far_odd * _FAR**3,
    ]


def _filter_at(point: float, other: float) -> tuple[float, float, float]:
    """A filter as a polynomial at a point; divided by the product of its distances from the other points."""
    scale = 1 / (2 * point**2 * (point**2 - other**2))
    return scale, scale * point, scale * point**2


TRANSFORMS = {
    2: Transform(2, ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)), _input_of_2, _output_of_2),
    4: Transform(
        4,
        (
            (1, 0, 0),
            _filter_at(_NEAR, _FAR),
            _filter_at(-_NEAR, _FAR),
            _filter_at(_FAR, _NEAR),
            _filter_at(-_FAR, _NEAR),
            (0, 0, 1),
        ),
        _input_of_4,
        _output_of_4,
    ),
}


@dataclasses.dataclass(frozen=True)
class FilterTransform:
    """Weights (3, 3, inputs, outputs) → (points, inputs, outputs): G g Gᵀ of each filter, computed in float64."""

    tile: int

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of a transformed weight."""
        return (TRANSFORMS[self.tile].points, *weight[2:])

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """Transform one weight; rounded once, to the type that it came in."""
        matrix = np.array(TRANSFORMS[self.tile].filter)
        transformed = np.einsum("ay,yxio,bx->abio", matrix, weight.astype("float64"), matrix, optimize=True)
        return transformed.reshape(self.shape(weight.shape)).astype(weight.dtype)
