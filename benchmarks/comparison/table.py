"""Prints the rows and the goals for people."""

from __future__ import annotations

from collections.abc import Sequence

from comparison.figures import NOT_INSTALLED, OPENVINO, OURS, REFERENCE, TITLES, TVM_DEFAULT, Row
from comparison.goals import Goal
from tvmbridge.cli.output import print_table

_NOTHING = "–"


def print_rows(rows: Sequence[Row]) -> None:
    """Print one line a row, and below the table what no column has room for."""
    programs = [OURS, REFERENCE, OPENVINO]
    if any(TVM_DEFAULT in {*row.rounds_us, *row.absent} for row in rows):
        programs.append(TVM_DEFAULT)
    columns = ["network", "batch", "threads", *(f"{TITLES[program]} ms" for program in programs)]
    columns += ["× ONNX Runtime", "(quartiles)", "× OpenVINO", "error", "build s", "build GB"]
    print_table(columns, [_cells(row, programs) for row in rows])
    for note in _notes(rows):
        print(note)


def print_goals(goals: Sequence[Goal]) -> None:
    """Print what the untuned build is meant to reach, and what it does."""
    verdicts = {True: "met", False: "missed", None: "not judged"}
    print()
    print_table(
        ["goal", "wanted", "found", ""],
        [[goal.name, goal.wanted, goal.found or "not measured", verdicts[goal.met]] for goal in goals],
    )


def _cells(row: Row, programs: Sequence[str]) -> list[str]:
    ratio, to_openvino = row.ratio(OURS), row.ratio(OURS, OPENVINO)
    return [
        row.network,
        str(row.batch),
        str(row.threads),
        *(_time(row, program) for program in programs),
        f"{ratio.median:.2f}" if ratio else (row.problem or _NOTHING).partition(":")[0],
        f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio and len(row.rounds_us[OURS]) > 1 else _NOTHING,
        f"{to_openvino.median:.2f}" if to_openvino else _absence(row, OPENVINO),
        f"{row.max_relative:.1e}" if row.max_relative is not None else _NOTHING,
        f"{row.build_seconds:.1f}" if row.build_seconds is not None else _NOTHING,
        f"{row.build_memory_bytes / 1e9:.2f}" if row.build_memory_bytes is not None else _NOTHING,
    ]


def _time(row: Row, program: str) -> str:
    median_us = row.median_us(program)
    if median_us is None:
        return _absence(row, program)
    milliseconds = median_us / 1000
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _absence(row: Row, program: str) -> str:
    reason = row.absent.get(program)
    if reason is None:
        return _NOTHING
    return reason if reason == NOT_INSTALLED else reason.partition(":")[0]


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [f"{row.label}: {row.problem}" for row in rows if row.problem is not None]
    for row in rows:
        notes += [
            f"{row.label}: {TITLES[program]}: {reason}"
            for program, reason in row.absent.items()
            if reason != NOT_INSTALLED
        ]
    if any(NOT_INSTALLED in row.absent.values() for row in rows):
        notes.append(f'{TITLES[OPENVINO]} is not installed: pip install ".[bench]"')
    return list(dict.fromkeys(notes))
