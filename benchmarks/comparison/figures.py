"""What was measured, and what follows from it: medians, ratios, means. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

OURS = "tvmbridge"
REFERENCE = "onnxruntime"
OPENVINO = "openvino"
TVM_DEFAULT = "tvm_default"
EXPRESS = "express"
TUNED = "tuned"
OURS_GRAPHS = "tvmbridge_graphs"
TUNED_GRAPHS = "tuned_graphs"
EAGER = "eager"
EAGER_DEFAULTS = "eager_defaults"
COMPILED = "compile"
COMPILED_DEFAULTS = "compile_defaults"
GRAPHS = "compile_graphs"
ONNXRUNTIME_CUDA = "onnxruntime_cuda"
TENSORRT = "tensorrt"
TITLES = {
    OURS: "tvmbridge",
    EXPRESS: "express",
    TUNED: "tuned",
    OURS_GRAPHS: "tvmbridge, graphs",
    TUNED_GRAPHS: "tuned, graphs",
    REFERENCE: "ONNX Runtime",
    OPENVINO: "OpenVINO",
    TVM_DEFAULT: "TVM's default",
    EAGER: "eager",
    EAGER_DEFAULTS: "eager, defaults",
    COMPILED: "compile",
    COMPILED_DEFAULTS: "compile, defaults",
    GRAPHS: "compile, graphs",
    ONNXRUNTIME_CUDA: "ONNX Runtime CUDA",
    TENSORRT: "TensorRT",
}

NOT_INSTALLED = "not installed"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One program's time over another's, over the rounds: the median and the quartiles. Below 1: it is faster."""

    median: float
    low: float
    high: float


class Timed:
    """What follows from the times of a row's programs."""

    rounds_us: dict[str, list[float]]

    def median_us(self, program: str) -> float | None:
        """The program's median over the rounds, microseconds; None where it has no figures."""
        rounds = self.rounds_us.get(program)
        return float(np.median(rounds)) if rounds else None

    def ratio(self, program: str, base: str = REFERENCE) -> Ratio | None:
        """The program's time over that of `base`, round by round; None where one of them has no figures."""
        ours, theirs = self.rounds_us.get(program), self.rounds_us.get(base)
        if not ours or not theirs:
            return None
        low, median, high = np.percentile(np.divide(ours, theirs), (25, 50, 75))
        return Ratio(float(median), float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Row(Timed):
    """One network at one batch and thread count.

    build_seconds, build_memory_bytes: of the command that built it; None where it could not be built.
    max_relative: of our outputs against ONNX Runtime's, max|a-b| / max|reference|; None where none could be compared.
    rounds_us: by program, its median call in each round, microseconds; empty where `problem` says what is wrong.
    absent: by program, why it has no figures.
    """

    network: str
    batch: int
    threads: int
    build_seconds: float | None = None
    build_memory_bytes: int | None = None
    max_relative: float | None = None
    problem: str | None = None
    rounds_us: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the row is about, for people."""
        return f"{self.network}, batch {self.batch}"


def show_threads(threads: int) -> str:
    """The number of threads, for people."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios: the same whichever way round they are taken. ValueError where there are none."""
    logarithms = [math.log(value) for value in values]
    if not logarithms:
        raise ValueError("no values have no mean")
    return math.exp(math.fsum(logarithms) / len(logarithms))


def describe_row(row: Row) -> dict[str, Any]:
    """A row as the JSON report has it: what was measured and, for readers without Python, what follows from it."""
    programs = row.rounds_us
    return {
        **dataclasses.asdict(row),
        "median_us": {program: row.median_us(program) for program in programs},
        "ratio_to_onnxruntime": {
            program: dataclasses.asdict(ratio)
            for program in programs
            if program != REFERENCE and (ratio := row.ratio(program)) is not None
        },
    }
