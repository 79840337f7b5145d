"""What the GPU benchmark does, in which order: what is worth most comes first, so that a cut loses the least. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
Kind = Literal["build", "speed", "peers", "tune"]


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row of the table is about."""

    network: str
    batch: int
    precision: Precision

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.network}, batch {self.batch}, {self.precision}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One piece of work on one row.

    build: build it untuned and hold it against ONNX Runtime on the CPU. speed: time it beside eager PyTorch.
    peers: build it with CUDA graphs too, and time both beside everything, for which torch.compile takes its time. tune:
    tune it, and time it beside everything, with graphs too.
    """

    kind: Kind
    case: Case


def plan(
    networks: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[Precision],
    *,
    peers: bool,
    tune: bool,
) -> list[Step]:
    """The steps in their order, for every network at every batch and precision.

    Whether all networks are right at the first batch and precision comes first, then their speed; then the same for the
    other precision, and for the other batches. Of torch.compile and tuning, which take long, the first batch's comes
    first.
    """

    def steps(kind: Kind, batch: int, precision: Precision) -> list[Step]:
        return [Step(kind, Case(network, batch, precision)) for network in networks]

    slow: list[Kind] = [*(["peers"] if peers else []), *(["tune"] if tune else [])]
    quick_steps = [
        step
        for batch in batches
        for precision in precisions
        for kind in ("build", "speed")
        for step in steps(kind, batch, precision)
    ]
    slow_steps = [
        step for batch in batches for kind in slow for precision in precisions for step in steps(kind, batch, precision)
    ]
    return [*quick_steps, *slow_steps]
