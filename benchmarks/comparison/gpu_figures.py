"""What was measured of one network on a GPU, and how the report has it. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from comparison.figures import COMPILED, EAGER, GRAPHS, OURS, OURS_GRAPHS, TUNED, TUNED_GRAPHS, Timed
from comparison.gpu_plan import Case, Precision

# The largest error, as max|a-b| / max|reference|, with which our outputs are right.
LIMITS: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2}
# What is further off, ours or a peer's, computes something else; what rounds more is timed, and its error is shown.
TIMED_LIMITS: dict[Precision, float] = {"float32": 1e-2, "float16": 1e-1}

# Our programs that launch CUDA graphs, by those that launch each kernel by itself.
WITH_GRAPHS = {OURS: OURS_GRAPHS, TUNED: TUNED_GRAPHS}
OUR_PROGRAMS = (*WITH_GRAPHS, *WITH_GRAPHS.values())
# What the ratios of the report are between.
COMPARED = [(ours, base) for ours in (OURS, TUNED) for base in (EAGER, COMPILED)]
COMPARED += [(ours, GRAPHS) for ours in WITH_GRAPHS.values()]


@dataclasses.dataclass(frozen=True)
class GpuRow(Timed):
    """One network at one batch and precision.

    build_seconds: of the command that built it untuned. errors: by program, max|a-b| / max|reference| against ONNX
    Runtime on the CPU. problem: what is wrong, None where nothing is. rounds_us: by program, its median call in each
    round, microseconds. absent: by program, why it has no figures. started_seconds: by program, from the start to the
    first outputs, in which PyTorch compiles. tuning: what tuning spent and found. gpu_states: how the GPU ran just
    before and after the timing.
    """

    case: Case
    build_seconds: float | None = None
    problem: str | None = None
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    rounds_us: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    started_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    tuning: dict[str, Any] | None = None
    gpu_states: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether our outputs were compared, and are near enough to be timed."""
        return self.problem is None and OURS in self.errors

    @property
    def right(self) -> bool:
        """Whether it is verified and within the limits, also with graphs, and what was to be tuned is."""
        errors = (self.errors.get(program, 0.0) for program in OUR_PROGRAMS)
        missing = {TUNED, OURS_GRAPHS, TUNED_GRAPHS} & self.absent.keys()
        return self.verified and max(errors) <= LIMITS[self.case.precision] and not missing

    @property
    def best(self) -> str:
        """The program that stands for us: tuned where there is one."""
        return TUNED if TUNED in self.rounds_us else OURS


def describe_gpu_row(row: GpuRow) -> dict[str, Any]:
    """A row as the JSON report has it, with what follows from its times."""
    ratios = {
        f"{ours}_to_{base}": dataclasses.asdict(ratio)
        for ours, base in COMPARED
        if (ratio := row.ratio(ours, base)) is not None
    }
    described = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "case"}
    return {
        **dataclasses.asdict(row.case),
        **described,
        "median_us": {program: row.median_us(program) for program in row.rounds_us},
        "ratios": ratios,
    }
