"""Prints the rows of the GPU benchmark for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comparison.figures import (
    COMPILED,
    COMPILED_DEFAULTS,
    EAGER,
    EAGER_DEFAULTS,
    GRAPHS,
    NOT_INSTALLED,
    ONNXRUNTIME_CUDA,
    OURS,
    OURS_GRAPHS,
    TENSORRT,
    TITLES,
    TUNED,
    TUNED_GRAPHS,
    geometric_mean,
)
from comparison.gpu_figures import COMPARED, GpuRow
from comparison.gpu_plan import Step
from tvmbridge.cli.output import print_table

PROGRAMS = (
    OURS,
    OURS_GRAPHS,
    TUNED,
    TUNED_GRAPHS,
    EAGER,
    EAGER_DEFAULTS,
    COMPILED,
    COMPILED_DEFAULTS,
    GRAPHS,
    ONNXRUNTIME_CUDA,
    TENSORRT,
)
_NOTHING = "–"
_NUMERICS = (
    "float32: products are not rounded to TF32, but in the columns 'defaults', which have what PyTorch begins with "
    "(TF32 in cuDNN). float16: PyTorch's weights and arithmetic are float16, channels last where there are "
    "convolutions; ours multiplies float16 and adds up in float32."
)


def print_gpu_rows(rows: Sequence[GpuRow], left_out: Sequence[Step], machine: Mapping[str, Any]) -> None:
    """One line a row: milliseconds a call, ratios (below 1 we are faster), errors; then what no column has room for.

    machine: as the report describes it.
    """
    print(_show_machine(machine))
    shown = [program for program in PROGRAMS if any(program in row.rounds_us for row in rows)]
    columns = ["network", "batch", "precision", *(f"{TITLES[program]} ms" for program in shown)]
    columns += [f"× {TITLES[EAGER]}", f"× {TITLES[COMPILED]}", "error", "error of eager", "build s"]
    print_table(columns, [_cells(row, shown) for row in rows])
    print(_NUMERICS)
    for line in [*_means(rows), *_notes(rows)]:
        print(line)
    if left_out:
        print(f"not done, as the time was up: {_show_left_out(left_out)}")


def _show_machine(machine: Mapping[str, Any]) -> str:
    state, peers = machine["state"] or {}, machine["peer_versions"]
    parts = [
        machine["date"][:10],
        f"{machine['gpu']} ({machine['architecture']})",
        f"driver {state.get('driver') or 'unknown'}, CUDA {machine['cuda_of_driver']}",
        f"nvcc {machine['nvcc']}",
        f"apache-tvm {machine['versions']['apache-tvm']}",
        f"torch {peers.get('torch') or 'not installed'}",
    ]
    warnings = ["EMULATED: its times are no GPU's"] if machine["emulated"] else []
    warnings += ["torch computes on the CPU"] if machine["peer_device"] == "cpu" else []
    return ". ".join([", ".join(parts), *warnings])


def _cells(row: GpuRow, shown: Sequence[str]) -> list[str]:
    ratios = [row.ratio(row.best, base) for base in (EAGER, COMPILED)]
    errors = [row.errors[program] for program in (OURS, TUNED, OURS_GRAPHS, TUNED_GRAPHS) if program in row.errors]
    return [
        row.case.network,
        str(row.case.batch),
        row.case.precision,
        *(_time(row, program) for program in shown),
        *(f"{ratio.median:.2f}" if ratio is not None else _NOTHING for ratio in ratios),
        f"{max(errors):.1e}" if errors else (row.problem or _NOTHING).partition(":")[0],
        f"{row.errors[EAGER]:.1e}" if EAGER in row.errors else _NOTHING,
        f"{row.build_seconds:.1f}" if row.build_seconds is not None else _NOTHING,
    ]


def _time(row: GpuRow, program: str) -> str:
    median_us = row.median_us(program)
    if median_us is not None:
        return f"{median_us / 1000:.3g}"
    return (row.absent.get(program) or _NOTHING).partition(":")[0]


def _means(rows: Sequence[GpuRow]) -> list[str]:
    lines = []
    for precision in dict.fromkeys(row.case.precision for row in rows):
        for batch in dict.fromkeys(row.case.batch for row in rows):
            counted = [row for row in rows if (row.case.precision, row.case.batch) == (precision, batch)]
            for ours, base in COMPARED:
                ratios = [ratio.median for row in counted if (ratio := row.ratio(ours, base)) is not None]
                if ratios:
                    what = f"{TITLES[ours]} / {TITLES[base]}, {precision}, batch {batch}"
                    lines.append(f"{what}: geometric mean {geometric_mean(ratios):.3f} of {len(ratios)}")
    return lines


def _notes(rows: Sequence[GpuRow]) -> list[str]:
    notes = [f"{row.case.label}: {row.problem}" for row in rows if row.problem is not None]
    for row in rows:
        notes += [
            f"{row.case.label}: {TITLES[program]}: {why}" for program, why in row.absent.items() if why != NOT_INSTALLED
        ]
    missing = [program for program in PROGRAMS if any(row.absent.get(program) == NOT_INSTALLED for row in rows)]
    if missing:
        notes.append(f"not installed: {', '.join(TITLES[program] for program in missing)}")
    return list(dict.fromkeys(notes))


def _show_left_out(steps: Sequence[Step]) -> str:
    counts: dict[str, int] = {}
    for step in steps:
        what = f"{step.kind}, batch {step.case.batch}, {step.case.precision}"
        counts[what] = counts.get(what, 0) + 1
    return "; ".join(f"{what} ({number})" for what, number in counts.items())
