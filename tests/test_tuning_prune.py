"""Pruning a tuning log: what a build looks up stays, the rest goes and is counted."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tuning_log import GOLDEN, trial, trials, write_log

from tvmbridge.cli import main
from tvmbridge.errors import LogError, OutputError
from tvmbridge.tuning.log import LogRecords, TuningLog, read_log
from tvmbridge.tuning.prune import prune_log, prune_records


@pytest.fixture
def run(capsys):
    """Run one command in this process: (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return call


def final(number: int, second: int, **fields):
    return trial(number, final=True, when=f"2026-11-23T10:00:0{second}Z", **fields)


def failed(number: int, **fields):
    return trial(number, times_us=(), error="crashed [/at] once", **fields)


RECORDS = [
    trial(5),
    trial(4),
    failed(3),
    trial(2),
    trial(2),
    trial(1, template="other"),
    trial(0, template_version=0),
    final(7, 1),
    final(6, 2),
    failed(1, final=True, when="2026-11-23T10:00:02Z"),
]


def test_the_quickest_trials_of_each_template_version_and_the_last_final_check_stay():
    pruned = prune_records(LogRecords(RECORDS), keep=2)
    assert list(pruned.kept) == [RECORDS[number] for number in (1, 3, 5, 6, 8, 9)]
    assert pruned.dropped == {"slower": 1, "failed": 1, "superseded": 1, "stale": 0, "repeated": 1}
    assert len(prune_records(LogRecords(RECORDS), keep=9).kept) == len(RECORDS) - 3
    with pytest.raises(ValueError, match="keep 0"):
        prune_records(LogRecords(), keep=0)


def test_records_of_templates_that_there_are_no_more_go_where_that_is_asked_for():
    pruned = prune_records(LogRecords(RECORDS), keep=1, versions={("dense", 1)})
    assert list(pruned.kept) == [RECORDS[number] for number in (3, 8, 9)]
    assert pruned.dropped["stale"] == 2


VERSIONS = {("dense", 1), ("dense", 2), ("", 1)}
LOGS = st.lists(
    trials().flatmap(
        lambda r: st.sampled_from(["dense", r.template]).map(
            lambda template: msgspec.structs.replace(r, template=template)
        )
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOGS, LOGS, st.integers(1, 3), st.booleans())
def test_the_best_of_a_pruned_log_is_the_best_of_the_whole_one(records, others, keep, stale):
    versions = VERSIONS if stale else None
    whole, pruned = LogRecords(records), prune_records(LogRecords(records), keep, versions)
    assert len(pruned.kept) + sum(pruned.dropped.values()) == len(records)
    small = LogRecords(pruned.kept)
    beside = LogRecords(prune_records(LogRecords(others), keep, versions).kept, also=pruned.kept)
    both = LogRecords([*records, *others])
    for record in [*records, *others]:
        owner, version = (record.kernel, record.target), (record.template, record.template_version)
        if not stale:
            assert small.best(*owner) == whole.best(*owner)
            assert small.best(*owner, record.template) == whole.best(*owner, record.template)
            assert beside.best(*owner) == both.best(*owner)
        if not stale or version in versions:
            assert small.best(*owner, *version) == whole.best(*owner, *version)
            assert not stale or {(r.template, r.template_version) for r in pruned.kept} <= versions
    assert list(prune_records(small, keep, versions).kept) == list(pruned.kept)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOGS, st.integers(1, 3))
def test_a_log_is_pruned_in_place_or_into_another_and_again_changes_nothing(records, keep):
    with tempfile.TemporaryDirectory() as folder:
        path, copy = write_log(Path(folder, "a.tune.jsonl"), records), Path(folder, "b.tune.jsonl")
        before = path.read_bytes()
        wanted = prune_log(path, dry_run=True, keep=keep)
        assert prune_log(path, copy, keep=keep) == wanted and path.read_bytes() == before
        assert prune_log(path, keep=keep) == wanted
        assert list(read_log(path)) == list(read_log(copy)) == list(wanted.kept)
        once = path.read_bytes()
        assert sum(prune_log(path, keep=keep).dropped.values()) == 0
        assert path.read_bytes() == once


def test_a_log_in_use_and_an_output_that_exists_are_left_alone(tmp_path):
    path = write_log(tmp_path / "a.tune.jsonl", RECORDS)
    taken = write_log(tmp_path / "b.tune.jsonl", [trial(1)])
    before = path.read_bytes(), taken.read_bytes()
    with TuningLog.open(path), pytest.raises(LogError, match=r"a\.tune\.jsonl is in use"):
        prune_log(path)
    for output in (taken, path):
        with pytest.raises(OutputError, match="exists"):
            prune_log(path, output)
    with pytest.raises(LogError, match="gone"):
        prune_log(tmp_path / "gone")
    assert (path.read_bytes(), taken.read_bytes()) == before
    assert not (tmp_path / "gone").exists()


def test_a_log_of_version_1_is_pruned_too(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    path.write_bytes(GOLDEN.read_bytes())
    assert prune_log(path).dropped["failed"] == 1
    assert len(read_log(path)) == 3 and b'"version":2' in path.read_bytes()


def test_the_command_says_what_it_kept_and_dropped(tmp_path, run):
    path = write_log(tmp_path / "a.tune.jsonl", RECORDS)
    before = path.read_bytes()
    code, out, _ = run("log", "prune", path, "--keep", "2", "--dry-run")
    assert (code, out) == (0, "would keep 6 records, drop 4: 1 slower, 1 failed, 1 superseded, 1 repeated\n")
    assert path.read_bytes() == before
    code, out, _ = run("log", "prune", path, "--keep", "2", "-o", tmp_path / "b.tune.jsonl", "--json")
    assert code == 0 and json.loads(out)["reasons"] == prune_records(LogRecords(RECORDS), 2).dropped
    assert json.loads(out)["kept"] == len(read_log(tmp_path / "b.tune.jsonl")) == 6
    code, out, _ = run("log", "prune", path)
    sizes = f"{len(before) / 1e3:.1f} kB → {path.stat().st_size / 1e3:.1f} kB"
    assert code == 0 and "kept 7 records, dropped 3: " in out and f"wrote {path}: {sizes}\n" in out
    code, _, err = run("log", "prune", path, "--keep", "0")
    assert code == 2 and "--keep" in err


@pytest.mark.compiler
def test_the_command_drops_the_records_of_templates_that_this_tvmbridge_does_not_have(tmp_path, run):
    from tvmbridge.schedules import template_versions

    (name, version), *_ = sorted(template_versions())
    alive = trial(9, template=name, template_version=version)
    path = write_log(tmp_path / "a.tune.jsonl", [trial(1), alive, trial(2, template=name, template_version=0)])
    code, out, _ = run("log", "prune", path, "--stale")
    assert code == 0 and "dropped 2: 2 stale" in out
    assert list(read_log(path)) == [alive]


def test_show_says_whether_a_trial_or_the_final_check_found_the_best(tmp_path, run):
    path = write_log(tmp_path / "a.tune.jsonl", [*RECORDS, trial(8, kernel="conv-2")])
    code, out, _ = run("log", "show", path)
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert code == 0 and rows["dense-1"][1:] == ["7", "1", "16", "µs", "final", "check", "mr=6", "pack=True"]
    assert rows["conv-2"][1:] == ["1", "0", "18", "µs", "trial", "mr=8", "pack=True"]
    assert out.endswith("8 trials, 3 records of final checks\n")
    code, out, _ = run("log", "show", path, "--json")
    shown = json.loads(out)
    assert (shown["trials"], shown["finals"]) == (8, 3)
    assert [(k["kernel"], k["finals"], k["best"].get("final", False)) for k in shown["kernels"]] == [
        ("dense-1", 2, True),
        ("conv-2", 0, False),
    ]


def test_show_lists_the_records_of_a_kernel_the_last_check_first_and_the_failed_last(tmp_path, run):
    path = write_log(tmp_path / "a.tune.jsonl", [*RECORDS, trial(8, kernel="conv-2")])
    code, out, _ = run("log", "show", path, "--kernel", "dense")
    rows = [line.split()[:5] for line in out.splitlines() if "mr=" in line]
    assert code == 0 and "conv-2" not in out
    assert [" ".join(row) for row in rows[:2]] == ["16 µs final check dense", "– final check dense 1"]
    assert [row[0] for row in rows[2:]] == ["10", "11", "12", "12", "14", "15", "–"]
    assert "crashed [/at] once" in out.splitlines()[-2]
    code, out, err = run("log", "show", path, "--kernel", "nothing")
    assert code == 0 and "no kernel's key has 'nothing' in it" in err
    code, out, _ = run("log", "show", path, "--kernel", "conv", "--json")
    (kernel,) = json.loads(out)["kernels"]
    assert kernel["kernel"] == "conv-2" and [r["times_us"] for r in kernel["records"]] == [[18.0]]
