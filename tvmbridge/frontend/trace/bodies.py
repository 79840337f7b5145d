"""The graphs among a node's attributes: what they read of the values around them, and how they are traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx

from tvmbridge.frontend.operator import Tensor, Value


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Where in the program a node stands.

    guards: conditions that the run decides, and whether they hold where the node's results are used: both branches of
    such an If are computed, and a loop in the one that is not taken must not begin. Of conditions outside of the
    innermost loop nothing is said: its body runs only where they hold. trips: of each loop around the node that is no
    sequence of nodes, how often it runs at least.
    """

    guards: tuple[tuple[Tensor, bool], ...] = ()
    trips: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bodies:
    """The graphs of one node. trace: traces one of them, given values for names in it; outer: values they read."""

    trace: Callable[[onnx.GraphProto, Mapping[str, Value], Surroundings], list[Value]]
    outer: Mapping[str, Value]
    around: Surroundings

    def __call__(self, body: onnx.GraphProto, given: Mapping[str, Value]) -> list[Value]:
        """The body's results, in order."""
        return self.trace(body, given, self.around)

    def guarded(self, condition: Tensor, holds: bool) -> Bodies:
        """For bodies whose results are used only where the condition is `holds`."""
        guards = (*self.around.guards, (condition, holds))
        return dataclasses.replace(self, around=dataclasses.replace(self.around, guards=guards))

    def inside_loop(self, trips: int) -> Bodies:
        """For the body of a loop that runs at least `trips` times."""
        return dataclasses.replace(self, around=Surroundings(trips=(*self.around.trips, trips)))

    def with_outer(self, more: Mapping[str, Value]) -> Bodies:
        """For bodies that see more values of those around them."""
        return dataclasses.replace(self, outer={**self.outer, **more})
