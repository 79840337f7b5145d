"""What is shown while tuning: a live view that fits its terminal, plain lines elsewhere, nothing for --json."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from tvmbridge.cli import progress as progress_module
from tvmbridge.cli.progress import BuildDisplay
from tvmbridge.cli.tuning_view import say_left, say_network, say_trials, show_seconds, table_kernels
from tvmbridge.tuning.budget import Budget

pytestmark = pytest.mark.compiler


def make_gain(number: int, **fields):
    from tvmbridge.tuning.progress import KernelGain

    values = {
        "kernel": f"key-{number}",
        "name": f"conv2d_add_relu{number}",
        "calls": 2,
        "configs": 600,
        "trials": 16 * number,
        "flops": 2e6,
        "untuned_us": 1500.0,
        "best_us": 10.0 * number,
    }
    return KernelGain(**{**values, **fields})


def make_progress(**fields):
    from tvmbridge.tuning.progress import TuneProgress

    required = {field.name for field in dataclasses.fields(TuneProgress) if field.default is dataclasses.MISSING}
    values = {
        "target": "native",
        "trials": 64,
        "known": 96,
        "failed": 3,
        "elapsed_s": 12.5,
        "budget": Budget(minutes=2),
        "untuned_us": 8000.0,
        "best_us": 5000.0,
        "kernels": tuple(make_gain(number) for number in range(1, 13)),
    }
    return TuneProgress(**{**dict.fromkeys(required - set(values), 0), **values, **fields})


def draw(progress, width: int, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    with console.capture() as captured:
        console.print(table_kernels(progress, width, height))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_table_shows_the_kernels_that_cost_most_and_counts_the_others():
    header, *rows, rest = draw(make_progress(), 120)
    assert header.split() == ["kernel", "calls", "trials", "untuned", "best", "GFLOP/s", "gain"]
    assert [row.split()[0] for row in rows] == [f"conv2d_add_relu{number}" for number in range(12, 4, -1)]
    assert rows[0].split()[1:] == ["2", "192/600", "1.5", "ms", "120", "µs", "16.7", "12.50×"]
    assert rest == "4 more"


def test_a_kernel_that_is_called_often_comes_before_a_slower_one_and_what_is_not_known_is_a_dash():
    often, slow = make_gain(1, calls=50), make_gain(12)
    new = make_gain(0, calls=1, flops=None, untuned_us=None, best_us=None)
    failing = make_gain(3, calls=1, best_us=None)
    rows = draw(make_progress(kernels=(new, slow, often, failing)), 120)[1:]
    assert [row.split()[0][-2:] for row in rows] == ["u3", "u1", "12", "u0"]
    assert rows[-1].split()[-5:] == ["0/600", "–", "–", "–", "–"]
    assert rows[0].split()[-5:] == ["1.5", "ms", "–", "–", "–"]


@pytest.mark.parametrize("width", range(1, 130, 7))
def test_the_table_fits_any_width(width):
    long = make_gain(1, name="a_kernel_with_a_very_long_name" * 4)
    lines = draw(make_progress(kernels=(long, make_gain(12))), width)
    assert max(map(len, lines)) <= max(width, 1)
    shown = [title for title in ("best", "gain", "trials", "untuned", "GFLOP/s", "calls") if title in lines[0]]
    assert shown == ["best", "gain", "trials", "untuned", "GFLOP/s", "calls"][: len(shown)]
    assert len(shown) >= (6 if width >= 75 else 2 if width >= 40 else 0)


@pytest.mark.parametrize("height", range(1, 15))
def test_the_table_fits_any_height(height):
    lines = draw(make_progress(), 100, height)
    assert len(lines) <= max(height, 1)
    assert len(lines) == min(height, 10) or height < 3


def test_names_and_titles_are_shown_as_they_are():
    assert "conv[bold]2d[/x]" in "\n".join(draw(make_progress(kernels=(make_gain(1, name="conv[bold]2d[/x]"),)), 100))


def test_the_lines_say_what_was_won_spent_and_is_left():
    progress = make_progress()
    assert say_network(progress) == "kernels 8 ms → 5 ms (1.60×)"
    assert say_trials(progress) == "64 trials (5.1 a second), 3 failed, 96 more in the log"
    assert say_left(progress) == ", at most 1 min 48 s left"
    assert say_left(progress, 60) == ", at most 48 s left"
    assert say_left(make_progress(budget=Budget(trials=200))) == ", at most 8 s left"
    assert say_left(make_progress(budget=Budget(trials=200, minutes=0.25))) == ", at most 2 s left"
    assert say_left(make_progress(budget=Budget(trials=200), trials=0)) == ""
    fresh = make_progress(trials=0, failed=0, known=0, untuned_us=0.0, best_us=0.0)
    assert say_network(fresh) == "kernels 0 ns → 0 ns" and say_trials(fresh) == "0 trials"
    assert [show_seconds(seconds) for seconds in (0.4, 59, 59.9, 3599, 4800)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 20 min",
    ]


def terminal(width: int = 100, height: int = 30, **environment: str) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        markup=False,
        width=width,
        height=height,
        _environ={"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment},
    )


def show(console: Console, *reports) -> str:
    with BuildDisplay(quiet=False, targets=2, resume="run it again", console=console) as display:
        display.say("import", "model[1].onnx")
        for report in reports:
            display.on_tuning(report)
            if display._live is not None:
                display._live.refresh()
    return console.file.getvalue()


def plain_text(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n")


ENDED = {"ended": "2 min spent", "elapsed_s": 120.0}


def test_a_terminal_shows_the_table_while_it_tunes_and_one_line_in_the_end():
    shown = show(terminal(), make_progress(), make_progress(**ENDED))
    text = plain_text(shown)
    assert "native [1/2]: tuning: kernels 8 ms → 5 ms (1.60×), at most 1 min 4" in text
    assert "64 trials (5.1 a second), 3 failed, 96 more in the log" in text
    assert "conv2d_add_relu12" in text and "12.50×" in text and "4 more" in text
    assert "native: tuned in 2 min 0 s (2 min spent): kernels 8 ms → 5 ms (1.60×), 64 trials" in text
    assert "\x1b[32m" in shown


def test_a_terminal_without_colour_gets_none():
    shown = show(terminal(NO_COLOR="1"), make_progress(), make_progress(**ENDED))
    assert "conv2d_add_relu12" in shown
    assert re.search(r"\x1b\[(\d+;)*(3[0-7]|38|9[0-7])", shown) is None


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 10), (79, 24), (200, 60)])
def test_the_live_view_fits_its_terminal(width, height):
    console = terminal(width, height)
    with BuildDisplay(quiet=False, targets=1, resume="", console=console) as display:
        display.on_tuning(make_progress())
        lines = console.render_lines(display._view(), pad=False)
    assert len(lines) <= height
    assert max(sum(segment.cell_length for segment in line) for line in lines) <= width


def test_elsewhere_there_is_a_line_a_stage_and_at_most_one_in_ten_seconds(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    consoles = Console(file=io.StringIO(), markup=False), terminal(TERM="dumb")
    for console in consoles:
        with BuildDisplay(quiet=False, targets=1, resume="", console=console) as display:
            display.say("import", "model[1].onnx")
            for _ in range(30):
                now[0] += 1.0
                display.on_tuning(make_progress())
            display.on_tuning(make_progress(**ENDED))
        lines = console.file.getvalue().splitlines()
        assert lines[0] == "model[1].onnx: importing"
        assert [line.startswith("native: tuning: ") for line in lines[1:]] == [True, True, True, False]
        assert "at most 1 min 48 s left, 64 trials" in lines[1] and "\x1b" not in lines[1]


def test_quiet_shows_nothing(capsys):
    with BuildDisplay(quiet=True, targets=1, resume="") as display:
        display.say("import", "model.onnx")
        display.on_tuning(make_progress())
        display.on_kernels(1, 5)
        display.on_tuning(make_progress(**ENDED))
    assert capsys.readouterr() == ("", "")


def test_an_interruption_says_how_to_go_on_and_leaves_no_live_view_behind(capsys):
    console = terminal()
    with (
        pytest.raises(KeyboardInterrupt),
        BuildDisplay(quiet=False, targets=1, resume="run it again", console=console) as display,
    ):
        display.on_tuning(make_progress())
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "what was measured is kept: run it again\n"
    shown = console.file.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("conv2d") and shown.endswith("\x1b[2K")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_says_how_far_it_is_where_it_can_and_else_that_it_began(terminal: bool):
    from tvmbridge.pipeline import BuildEvent

    shown = io.StringIO()
    console = Console(file=shown, width=200, height=20, force_terminal=terminal, color_system=None)
    with BuildDisplay(quiet=False, targets=2, resume="", console=console) as display:
        for so_far in (0, 31_000_000, 94_643_021):
            display.on_event(BuildEvent("edge", "fetch", fetched=(so_far, 94_643_021)))
        if terminal:
            assert display._live is not None
            display._live.refresh()
    text = shown.getvalue()
    assert "edge [1/2]: downloading TVM's runtime for its machine, once" in text
    assert ("95 of 95 MB" in text) == terminal
    assert text.count("(95 MB)\n") == (not terminal)
