"""Draws the rows as bars: each program's time relative to ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison.figures import OPENVINO, OURS, REFERENCE, TITLES, TVM_DEFAULT, Row, show_threads

_COLOURS = {OURS: "#1f6feb", OPENVINO: "#b0b7bf", TVM_DEFAULT: "#e0a15e"}
# A bar beyond this is cut and its number written in it, so that what lies near 1 can still be told apart.
_LONGEST = 2.5
_INCHES_A_BAR = 0.24
_NUMBER: dict[str, Any] = {
    "va": "center",
    "fontsize": 7,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # readable on a bar and on the line at 1
}


def write_chart(path: Path, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """Write a PNG: one panel for each thread count, one group of bars for each network and batch.

    machine: its cpu and the date of the run, as peers.py describes them. Thin lines are the quartiles over the rounds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = sorted({row.threads for row in rows})
    programs = [program for program in _COLOURS if any(row.ratio(program) for row in rows)]
    groups = max(sum(row.threads == threads for row in rows) for threads in counts)
    height = 1.8 + _INCHES_A_BAR * groups * (len(programs) + 1)
    figure = Figure(figsize=(1 + 5.5 * len(counts), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(counts), squeeze=False)[0]
    for panel, threads in zip(panels, counts, strict=True):
        _draw_panel(panel, [row for row in rows if row.threads == threads], programs)
        panel.set_title(show_threads(threads), fontsize=10)
    used = " and ".join(show_threads(threads) for threads in counts)
    figure.suptitle(f"Untuned float32 latency, {machine['cpu']}, {used}, {machine['date'][:10]}", fontsize=11)
    figure.supxlabel(f"time relative to {TITLES[REFERENCE]} (shorter is faster)", fontsize=9)
    if programs:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", fontsize=8, frameon=False, ncols=len(labels))
    figure.savefig(path, format="png")


def _draw_panel(panel: Any, rows: Sequence[Row], programs: Sequence[str]) -> None:
    thickness = 0.8 / max(1, len(programs))
    for place, program in enumerate(programs):
        drawn = [(index, ratio) for index, row in enumerate(rows) if (ratio := row.ratio(program)) is not None]
        heights = [index - 0.4 + thickness * (place + 0.5) for index, _ in drawn]
        lengths = [min(ratio.median, _LONGEST) for _, ratio in drawn]
        panel.barh(heights, lengths, thickness * 0.92, color=_COLOURS[program], label=TITLES[program])
        for height, (_, ratio) in zip(heights, drawn, strict=True):
            if ratio.median > _LONGEST:
                panel.text(_LONGEST * 0.98, height, f"{ratio.median:.1f} →", ha="right", **_NUMBER)
                continue
            panel.plot([ratio.low, min(ratio.high, _LONGEST)], [height, height], color="#30363d", linewidth=0.8)
            end = max(ratio.median, min(ratio.high, _LONGEST))
            panel.text(end + 0.03, height, f"{ratio.median:.2f}", **_NUMBER)
    panel.axvline(1, color="#cf222e", linewidth=1, label=TITLES[REFERENCE])
    # A row without figures keeps its place: that there are none is a result too.
    for index, row in enumerate(rows):
        if row.problem is not None:
            panel.text(0.02, index, row.problem.partition(":")[0], va="center", fontsize=7, color="#cf222e")
    panel.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    panel.set_xlim(0, _LONGEST * 1.05)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="x", labelsize=8)
