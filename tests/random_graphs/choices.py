"""Where a random graph's decisions come from: a seed, or hypothesis, which then can shrink what it drew."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices(Protocol):
    """Decisions; the first element and the lowest number are the simplest ones."""

    def integer(self, low: int, high: int) -> int:
        """A number of low to high, both included."""

    def of(self, options: Sequence[T]) -> T:
        """One of the options."""

    def odds(self, chance: float) -> bool:
        """True in about this share of the draws."""


class SeededChoices:
    """Choices that a seed decides: the same seed, the same graph."""

    def __init__(self, *seed: int) -> None:
        self._random = random.Random(repr(seed))

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def of(self, options: Sequence[T]) -> T:
        return options[self._random.randrange(len(options))]

    def odds(self, chance: float) -> bool:
        return self._random.random() < chance


class DrawnChoices:
    """Choices that hypothesis makes. draw: of a composite strategy."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def of(self, options: Sequence[T]) -> T:
        return options[self._draw(st.integers(0, len(options) - 1))]

    def odds(self, chance: float) -> bool:
        return self._draw(st.integers(0, 99)) >= 100 - round(100 * chance)
