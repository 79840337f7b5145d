"""Print the coefficients of tvmbridge/lowering/vector_math.py: minimax fits of relative error, in float64.

`python scripts/fit_vector_math.py`. Lawson's iteration: weighted least squares, each weight multiplied by its point's
error until all errors are alike; rationals in linearised form, P(u) - y Q(u) divided by the last step's Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def fit_polynomial(x: np.ndarray, y: np.ndarray, powers: range, scale: np.ndarray) -> tuple[float, np.ndarray]:
    """Least greatest |y - Σ c x**power| / scale; that error and c."""
    basis = x[:, None] ** np.array(powers)
    weights, best = np.ones_like(x), (math.inf, np.zeros(len(powers)))
    for _ in range(300):
        root = np.sqrt(weights) / scale
        coefficients = np.linalg.lstsq(basis * root[:, None], y * root, rcond=None)[0]
        error = np.abs(y - basis @ coefficients) / scale
        best = min(best, (float(error.max()), coefficients), key=lambda found: found[0])
        weights *= error
        weights /= weights.sum()
    return best


def fit_odd_rational(
    function: Callable[[np.ndarray], np.ndarray], limit: float, degree: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """function(x) = x P(x²) / Q(x²) up to the limit, Q(0) = 1, both of this degree: relative error, P, Q."""
    x = limit * np.sin(np.pi * (np.arange(1500) + 0.5) / 3000)
    y, u = function(x) / x, (x / limit) ** 2
    powers = u[:, None] ** np.arange(degree + 1)
    weights, below = np.ones_like(x), np.ones_like(x)
    best = (math.inf, np.zeros(degree + 1), np.zeros(degree + 1))
    for _ in range(400):
        root = np.sqrt(weights) / (y * below)
        system = np.concatenate([powers, -powers[:, 1:] * y[:, None]], axis=1) * root[:, None]
        solution = np.linalg.lstsq(system, y * root, rcond=None)[0]
        above, below = solution[: degree + 1], np.array([1.0, *solution[degree + 1 :]])
        numerator, denominator, below = above, below, powers @ below
        error = np.abs(powers @ numerator / below / y - 1)
        best = min(best, (float(error.max()), numerator, denominator), key=lambda found: found[0])
        weights = np.maximum(weights * error, 1e-12 * np.max(weights * error))
        weights /= weights.mean()
    scale = limit ** (-2.0 * np.arange(degree + 1))
    return best[0], best[1] * scale, best[2] * scale


def chebyshev_points(low: float, high: float, count: int) -> np.ndarray:
    """Points that lie closer at both ends."""
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(count) + 0.5) / count)


def _show(name: str, error: float, *coefficients: np.ndarray) -> None:
    print(f"{name}: relative error {error:.1e}")
    for row in coefficients:
        print("   ", ", ".join(f"{np.float32(value):.9g}" for value in row))


if __name__ == "__main__":
    x = chebyshev_points(-0.0012 * math.log(2), 1.0005 * math.log(2), 3000)
    error, found = fit_polynomial(x, np.expm1(x), range(1, 7), np.exp(x))
    _show("exp", error, np.array([1.0, *found]))
    x = chebyshev_points(math.sqrt(0.5) - 1, math.sqrt(2) - 1, 4000)
    x = x[np.abs(x) > 1e-4]
    error, found = fit_polynomial(x, np.log1p(x) - x + x * x / 2, range(3, 10), np.abs(np.log1p(x)))
    _show("log", error, found)
    _show("tanh", *fit_odd_rational(np.tanh, 9.02, 4))
    _show("erf", *fit_odd_rational(np.vectorize(math.erf), 3.93, 5))
