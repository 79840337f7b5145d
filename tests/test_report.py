"""The tuning report: what it says of a log, and that its page is whole, safe and needs nothing else."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import lower_expression, random_array, runnable_targets
from tvm import relax

import tests.onnx_models as models
from tvmbridge.bundle import ModelFacts
from tvmbridge.cli import main
from tvmbridge.cli.output import show_us
from tvmbridge.lowering import LoweredModel
from tvmbridge.report import Failures, Point, Share, TargetReport, report_lowered
from tvmbridge.report.charts import draw_shares, draw_steps
from tvmbridge.report.render import render_report
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.log import LogRecords, TrialRecord, TuningLog
from tvmbridge.tuning.tasks import Candidate, Task, find_tasks

pytestmark = pytest.mark.compiler

NATIVE = runnable_targets()[0]
FACTS = ModelFacts("digits", "0" * 64, 17)


@functools.cache
def network() -> LoweredModel:
    """A product with its activation, called twice, and a softmax."""
    op = relax.op
    weight = relax.const(random_array(np.random.default_rng(0), (29, 29), "float32"), "float32")

    def build(x: relax.Expr) -> relax.Expr:
        for _ in range(2):
            x = op.nn.relu(op.matmul(x, weight))
        return op.nn.softmax(x)

    return lower_expression(build, [((13, 29), "float32")], NATIVE)


def tasks() -> list[Task]:
    return sorted(find_tasks(network(), NATIVE, LogRecords()), key=lambda task: -task.kernel.calls)


def untried(task: Task) -> list[Candidate]:
    """Its candidates but the untuned one."""
    found = task.untried.values() if isinstance(task.untried, dict) else task.untried
    return [candidate for candidate in found if candidate.key != task.untuned.key]


def record(candidate: Candidate, second: int, time_us: float | None, error: str = "crashed", **fields) -> TrialRecord:
    values = {
        "kernel": candidate.kernel.key,
        "target": NATIVE.key,
        "template": candidate.template.name,
        "template_version": candidate.template.version,
        "config": candidate.config,
        "times_us": () if time_us is None else (time_us,),
        "error": error if time_us is None else None,
        "tvm": "0.27.0",
        "seed": 0,
        "when": f"2026-11-23T10:00:{second:02}Z",
    }
    return TrialRecord(**{**values, **fields})


def some_records() -> list[TrialRecord]:
    product, softmax = tasks()
    first, second, third, fourth = untried(product)[:4]
    return [
        record(product.untuned, 1, 100.0),
        record(softmax.untuned, 2, 50.0),
        record(first, 3, 120.0),
        record(second, 4, None, "compiling took\nover 10 s"),
        record(third, 5, 60.0),
        record(untried(softmax)[0], 6, None),
        record(fourth, 7, None),
        record(fourth, 8, 1.0, template_version=99),
        record(first, 9, 1.0, target="another"),
    ]


def checks(*, won: bool = True) -> list[TrialRecord]:
    product, softmax = tasks()
    finals = [
        record(product.untuned, 30, 110.0, final=True),
        record(softmax.untuned, 30, 55.0, final=True),
    ]
    return [*finals, record(untried(product)[2], 30, 80.0, final=True)] if won else finals


def report_of(records: list[TrialRecord]) -> TargetReport:
    return report_lowered(network(), NATIVE, LogRecords(records))


def test_a_report_says_what_was_won_tried_and_lost():
    report = report_of(some_records())
    product, softmax = report.kernels
    assert (report.trials, report.failed, report.forgotten) == (7, 3, 1)
    assert report.failures == (Failures("crashed", 2), Failures("compiling took over 10 s", 1))
    assert (report.first_when, report.last_when) == ("2026-11-23T10:00:01Z", "2026-11-23T10:00:07Z")
    assert report.tvm == ("0.27.0",) and report.checked_when is None and not report.checked
    assert report.curve == (Point(1, 250.0), Point(5, 170.0))
    assert (product.calls, product.trials, product.failed) == (2, 5, 2)
    assert (product.untuned_us, product.best_us, product.gain) == (100.0, 60.0, 100 / 60)
    assert product.curve == (Point(1, 100.0), Point(4, 60.0))
    chosen = untried(tasks()[0])[2]
    assert (product.template, product.config) == (chosen.template.name, chosen.config)
    assert product.gflops == product.flops / 60 / 1e3 and product.configs == len(untried(tasks()[0])) + 1
    assert (softmax.untuned_us, softmax.best_us, softmax.gain, softmax.checked_gain) == (50.0, 50.0, 1.0, None)
    assert [(share.before_us, share.after_us) for share in report.shares] == [(200.0, 120.0), (50.0, 50.0)]
    assert (report.before_us, report.after_us) == (250.0, 170.0)


def test_the_final_check_decides_what_a_build_takes_and_where_the_time_goes():
    report = report_of([*some_records(), *checks()])
    assert report.checked and report.checked_when == "2026-11-23T10:00:30Z" and report.trials == 7
    product, softmax = report.kernels
    assert (product.checked_untuned_us, product.checked_best_us, product.checked_gain) == (110.0, 80.0, 110 / 80)
    assert (softmax.checked_untuned_us, softmax.checked_best_us, softmax.checked_gain) == (55.0, 55.0, 1.0)
    assert [(share.before_us, share.after_us) for share in report.shares] == [(220.0, 160.0), (55.0, 55.0)]
    (product, _) = report_of([*some_records(), *checks(won=False)]).kernels
    assert product.config == tasks()[0].untuned.config and product.checked_gain == 1.0


def test_times_alone_and_times_in_the_network_are_not_added_up():
    report = report_of([*some_records(), *checks()[:1]])
    assert not report.checked and [share.before_us for share in report.shares] == [200.0, 50.0]


def test_a_kernel_without_a_success_is_left_out_of_the_sums():
    product, softmax = tasks()
    report = report_of([record(product.untuned, 1, None), record(untried(softmax)[0], 2, 40.0)])
    assert report.curve == (Point(1, 40.0),)
    assert [share.name for share in report.shares] == []
    failing = next(kernel for kernel in report.kernels if kernel.name == product.kernel.name)
    assert (failing.untuned_us, failing.best_us, failing.template, failing.curve) == (None, None, None, ())


def test_an_empty_log_is_a_report_of_nothing():
    report = report_of([])
    assert (report.trials, report.curve, report.failures, report.shares) == (0, (), (), ())
    assert len(report.kernels) == 2 and report.kernels[0].template is None
    page = page_of([report])
    assert "no trials" in "".join(page.itertext()) and page.findall(".//path") == []


def page_of(targets: list[TargetReport], facts: ModelFacts = FACTS, logs: tuple[str, ...] = ("m.tune.jsonl",)):
    """The page as a tree, once it is known to be whole and to need nothing else."""
    page = render_report(facts, logs, targets, show_us)
    return whole_page(page)


def whole_page(page: str) -> ElementTree.Element:
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    root = ElementTree.fromstring(page)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        assert element.tag in {
            *("html", "head", "meta", "title", "style", "body", "main", "nav", "section", "h1", "h2", "h3"),
            *("p", "dl", "dt", "dd", "ul", "li", "a", "code", "span", "br", "div", "figure", "figcaption"),
            *(
                "strong",
                "table",
                "caption",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
                "svg",
                "desc",
                "line",
                "text",
                "path",
                "rect",
            ),
        }, element.tag
        assert {"src", "srcset", "data", "action", "xmlns"} & set(element.keys()) == set()
        assert not any(name.startswith("on") for name in element.attrib)
        assert element.get("href", "#t1").startswith("#")
        if element.get("href"):
            assert element.get("href")[1:] in ids
        if element.tag == "svg":
            assert element.get("role") == "img" and set(element.get("aria-labelledby").split()) <= set(ids)
    styles = "".join(element.text for element in root.iter("style")) + "".join(e.get("style", "") for e in root.iter())
    assert "url(" not in styles and "@import" not in styles
    assert re.search(r"https?://", page) is None
    assert "prefers-color-scheme: dark" in styles
    return root


def test_the_page_is_whole_and_shows_curves_shares_gains_and_failures():
    page = page_of([report_of([*some_records(), *checks()])])
    text = " ".join("".join(page.itertext()).split())
    assert page.findtext("./head/title") == "Tuning report: digits"
    assert "In the network: 275 µs → 215 µs (1.28×)" in text
    assert "Each kernel alone: 250 µs → 170 µs (1.47×)" in text and "7, 3 failed; 1 more of schedules" in text
    assert "compiling took over 10 s" in text and "2026-11-23T10:00:30Z" in text and "TVM 0.27.0" in text
    assert len(page.findall(".//path")) == 3
    before, after = (
        float(bar[-1].get("x")) + float(bar[-1].get("width")) for bar in page.findall(".//svg[@class='bar']")
    )
    assert (before, after) == (720.0, pytest.approx(720 * 215 / 275, abs=0.1))
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in page.findall(".//tbody/tr")]
    assert rows[0][3:12] == ["100 µs", "60 µs", "1.67×", rows[0][6], "110 µs", "80 µs", "1.38×", "80.0 %", "74.4 %"]
    for table in page.iter("table"):
        assert table.find("caption") is not None
        assert all(cell.get("scope") for cell in table.iter("th"))


def test_a_report_of_emulated_hardware_says_so_and_takes_nothing_of_the_real_ones():
    emulated = msgspec.structs.replace(NATIVE, emulated=True)
    (product, _) = tasks()
    slow = record(product.untuned, 1, 9000.0, target=emulated.key, emulated=True)
    records = LogRecords([*some_records(), *checks(), slow])
    real, of_emulated = report_of([*some_records(), *checks(), slow]), report_lowered(network(), emulated, records)
    assert (real.emulated, of_emulated.emulated) == (False, True)
    assert real == report_of([*some_records(), *checks()])
    assert (of_emulated.trials, of_emulated.kernels[0].best_us, of_emulated.checked) == (1, 9000.0, False)
    assert "measured under emulation" in "".join(page_of([of_emulated]).itertext())
    assert "emulation" not in "".join(page_of([real]).itertext())


def test_several_targets_are_sections_that_can_be_jumped_to():
    reports = [report_of(some_records()), dataclasses.replace(report_of([]), name="edge")]
    page = page_of(reports)
    assert [heading.text for heading in page.iter("h2")] == [NATIVE.name, "edge"]
    assert [link.text for link in page.iter("a")] == [NATIVE.name, "edge"]


NASTY = "</title><script>alert('1' & \"2\")</script>{{ 7*7 }}%s\x00\x1b\udc80\uffff"


def test_whatever_names_and_messages_hold_is_text():
    report = report_of([*some_records(), *checks()])
    kernels = tuple(
        dataclasses.replace(k, name=f"{k.name}{NASTY}", kernel=NASTY, template=NASTY, config={NASTY: NASTY})
        for k in report.kernels
    )
    shares = tuple(dataclasses.replace(share, name=f"{share.name}{NASTY}") for share in report.shares)
    nasty = dataclasses.replace(
        report,
        name=NASTY,
        key=NASTY,
        kernels=kernels,
        shares=shares,
        failures=(Failures(NASTY, 3), Failures("", 1)),
        tvm=(NASTY,),
        first_when=NASTY,
    )
    page = render_report(msgspec.structs.replace(FACTS, name=NASTY), (NASTY,), [nasty, nasty], show_us)
    root = whole_page(page.encode("utf-8").decode())
    assert "<script" not in page and "49" not in root.findtext("./head/title")
    assert root.findtext("./head/title") == "Tuning report: " + NASTY[:-4] + "\ufffd" * 4
    for name in (root.find(".//h1"), root.find(".//h2"), root.findall(".//code")[1], root.find(".//tbody/tr/th")):
        assert "<script>alert('1' & \"2\")</script>{{ 7*7 }}%s" in "".join(name.itertext())


POINTS = st.lists(st.tuples(st.integers(1, 500), st.floats(1e-3, 1e9)), min_size=1, max_size=30).map(
    lambda pairs: [
        Point(trial, time_us)
        for (trial, _), (_, time_us) in zip(
            sorted({p[0]: p for p in pairs}.values()),
            sorted({p[0]: p for p in pairs}.values(), key=lambda p: -p[1]),
            strict=True,
        )
    ]
)


@given(POINTS, st.integers(0, 1000), st.integers(2, 6))
def test_a_curve_stays_in_its_box_and_falls(points, more, labels):
    trials = points[-1].trial + more
    chart = draw_steps(points, trials, show_us, width=300, height=120, labels=labels)
    xs = [float(x) for x in re.findall(r"[MH](-?[\d.]+)", chart.path)]
    ys = [float(y) for y in re.findall(r"[V ](-?[\d.]+)", chart.path)]
    assert xs == sorted(xs) and chart.left - 0.1 <= xs[0] and xs[-1] == pytest.approx(chart.right, abs=0.1)
    assert ys == sorted(ys) and chart.top - 0.1 <= ys[0] and ys[-1] <= chart.bottom + 0.1
    assert chart.y_ticks[0].label == "0" and len(chart.y_ticks) <= 2 * labels + 2
    assert all(chart.top - 0.1 <= tick.at <= chart.bottom + 0.1 for tick in chart.y_ticks)
    assert chart.x_ticks and all(chart.left <= tick.at <= chart.right + 0.1 for tick in chart.x_ticks)
    assert len({tick.label for tick in chart.x_ticks}) == len(chart.x_ticks)


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=20))
def test_bars_are_as_long_as_the_time_and_lack_no_kernel(times):
    shares = [Share(f"kernel{number}", *pair) for number, pair in enumerate(times)]
    bars = draw_shares(shares, width=720)
    assert len(bars.names) == len(bars.before) == len(bars.after) == min(len(times), 8)
    lengths = [sum(segment.width for segment in bar) for bar in (bars.before, bars.after)]
    sums = [sum(before for before, _ in times), sum(after for _, after in times)]
    assert max(lengths) == pytest.approx(720)
    assert lengths[0] * sums[1] == pytest.approx(lengths[1] * sums[0])
    for bar in (bars.before, bars.after):
        assert sum(segment.percent for segment in bar) == pytest.approx(100)
        assert [segment.colour for segment in bar] == list(range(len(bar)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a model, and a log of one trial of each kernel on this machine."""
    from tvmbridge.frontend import import_onnx
    from tvmbridge.lowering import lower

    monkeypatch.chdir(tmp_path)
    onnx.save(models.mlp(), "m.onnx")
    native = parse_preset("native")
    lowered = lower(import_onnx("m.onnx"), native)
    with TuningLog.open("m.tune.jsonl") as log:
        for number, task in enumerate(find_tasks(lowered, native, log)):
            log.append([record(task.untuned, number, 10.0, target=native.key)])
    return tmp_path


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["report", *arguments])
        return ended.value.code, *capsys.readouterr()

    return call


def test_the_command_writes_one_page_for_all_targets(folder, run):
    code, out, _ = run("m.onnx", "--target", "native", "--target", "arm", "-o", "out.html")
    assert (code, out) == (0, "wrote out.html\n")
    page = whole_page((folder / "out.html").read_text(encoding="utf-8"))
    assert [heading.text for heading in page.iter("h2")] == ["native", "arm"]
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "m.tune.jsonl", "m.tune.jsonl.lock", "out.html"]


def test_the_command_prints_its_data_and_takes_folders_of_logs(folder, run):
    (folder / "shared").mkdir()
    shutil.move(folder / "m.tune.jsonl", folder / "shared" / "m.tune.jsonl")
    code, out, err = run("m.onnx", "--target", "native", "--log", "shared", "--json")
    assert code == 0 and err == "" and not (folder / "m.html").exists()
    (target,) = json.loads(out)["targets"]
    assert target["trials"] == len(target["kernels"]) > 0 and target["before_us"] == target["after_us"] > 0
    assert all(
        kernel["gain"] == 1.0 and kernel["curve"] == [{"trial": 1, "time_us": 10.0}] for kernel in target["kernels"]
    )
    code, _, _ = run("m.onnx", "--target", "native", "--log", "shared", "--json", "-o", "both.html")
    assert code == 0 and (folder / "both.html").exists()


def test_the_command_refuses_what_it_cannot_use_and_leaves_everything_as_it_was(folder, run):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments, words in (
        (["--log", "gone.tune.jsonl"], "gone.tune.jsonl: no such tuning log"),
        (["--log", "m.tune.jsonl", "--log", "gone"], "gone: no such tuning log"),
        (["--log", "m.onnx"], "m.onnx is not a tuning log"),
        (["-o", "m.onnx"], "m.onnx is an input"),
        (["-o", "m.tune.jsonl"], "m.tune.jsonl is an input"),
        (["-o", "no/such/out.html"], "no/such/out.html: cannot write the report"),
        (["-o", "."], ". is a folder"),
    ):
        code, _, err = run("m.onnx", "--target", "native", *arguments)
        assert code == 1 and words in err, (arguments, err)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
