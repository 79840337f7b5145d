"""Several tuning logs read as one: whose records are whose, what is read only, and which files a folder stands for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tuning_log import HEADER, trial, trials, write_log

from tvmbridge.errors import LogError
from tvmbridge.tuning.log import LogRecords, TuningLog, read_logs
from tvmbridge.tuning.record import render_record

KEY = ("dense-1", "x86 v3")


def test_lookups_find_the_records_of_all_logs_and_the_log_itself_keeps_its_own(tmp_path):
    own = write_log(tmp_path / "own.tune.jsonl", [trial(5), trial(6)])
    other = write_log(tmp_path / "other.tune.jsonl", [trial(6), trial(1), trial(9, kernel="conv-2")])
    before = other.read_bytes()
    with TuningLog.open(own, also=[other]) as log:
        for records in (log, read_logs([own, other])):
            assert list(records) == [trial(5), trial(6)] and len(records) == 2
            assert records.measured(*KEY) == (trial(5), trial(6), trial(1))
            assert records.from_elsewhere(*KEY) == (trial(1),)
            assert records.from_elsewhere("conv-2", "x86 v3") == (trial(9, kernel="conv-2"),)
            assert records.from_elsewhere("conv-2", "arm") == ()
            assert records.best(*KEY) == trial(1)
        log.append([trial(0)])
        assert log.best(*KEY) == trial(0) and log.from_elsewhere(*KEY) == (trial(1),)
    assert list(read_logs([own])) == [trial(5), trial(6), trial(0)]
    assert other.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.tune.jsonl",
        "own.tune.jsonl",
        "own.tune.jsonl.lock",
    ]


def test_the_last_final_check_of_all_logs_decides(tmp_path):
    early, late = (
        trial(number, final=True, when=f"2026-11-23T10:00:0{number}Z", times_us=(float(number),)) for number in (1, 2)
    )
    for mine, theirs in ((early, late), (late, early)):
        own = write_log(tmp_path / "own.tune.jsonl", [mine])
        other = write_log(tmp_path / "other.tune.jsonl", [theirs])
        records = read_logs([own, other])
        assert records.finals(*KEY) == (late,) and records.best(*KEY) == late
        assert records.measured(*KEY) == records.from_elsewhere(*KEY) == ()


def test_a_folder_stands_for_its_logs_in_order_of_their_names(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    for name, number in (("b.tune.jsonl", 2), ("a.tune.jsonl", 1), ("c.tune.jsonl", 3)):
        write_log(shared / name, [trial(number)])
    (shared / "notes.txt").write_text("nothing")
    (shared / ".a.tune.jsonl.x7k2").write_text("half a file of someone who writes")
    (tmp_path / "empty").mkdir()
    found = read_logs([tmp_path / "own.tune.jsonl", shared, tmp_path / "empty"]).measured(*KEY)
    assert found == (trial(1), trial(2), trial(3))
    assert read_logs([shared]).from_elsewhere(*KEY) == found and len(read_logs([shared])) == 0


def test_the_log_itself_in_the_shared_folder_and_a_log_named_twice_are_no_others(tmp_path):
    own = write_log(tmp_path / "own.tune.jsonl", [trial(1)])
    other = write_log(tmp_path / "other.tune.jsonl", [trial(2), trial(2)])
    (tmp_path / "link.tune.jsonl").symlink_to(own)
    for also in ([tmp_path], [other, tmp_path, other], [own, other]):
        records = read_logs([own, *also])
        assert records.measured(*KEY) == (trial(1), trial(2)) and records.from_elsewhere(*KEY) == (trial(2),)
        with TuningLog.open(own, also=also) as log:
            assert log.from_elsewhere(*KEY) == (trial(2),)


def test_the_first_log_may_be_missing_yet_and_no_other(tmp_path):
    own, other = tmp_path / "own.tune.jsonl", write_log(tmp_path / "other.tune.jsonl", [trial(1)])
    records = read_logs([own, other])
    assert len(records) == 0 and records.source == str(own) and records.measured(*KEY) == (trial(1),)
    for use in (lambda: read_logs([own, tmp_path / "gone"]), lambda: TuningLog.open(own, also=[tmp_path / "gone"])):
        with pytest.raises(LogError, match="gone: cannot read the tuning log: No such file"):
            use()
    foreign = tmp_path / "foreign.tune.jsonl"
    foreign.write_text("my diary\n")
    with pytest.raises(LogError, match=r"foreign\.tune\.jsonl is not a tuning log"):
        TuningLog.open(own, also=[tmp_path])
    assert not own.exists()
    assert len(read_logs([])) == 0


def test_another_log_may_be_in_use_and_its_unfinished_line_is_left_out_and_said(tmp_path, caplog):
    own, other = tmp_path / "own.tune.jsonl", tmp_path / "other.tune.jsonl"
    with TuningLog.open(other) as writer:
        writer.append([trial(1)])
        with TuningLog.open(own, also=[other]) as log:
            writer.append([trial(2)])
            assert log.measured(*KEY) == (trial(1),)
    other.write_bytes(other.read_bytes()[:-9])
    before = other.read_bytes()
    assert read_logs([own, other]).measured(*KEY) == (trial(1),)
    assert "other.tune.jsonl:3: unfinished last line" in caplog.text
    assert other.read_bytes() == before


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    def refuse(_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(LogError, match="shared: cannot read the folder of tuning logs: Permission denied"):
        read_logs([tmp_path / "own", tmp_path / "shared"])


LOGS = st.lists(st.lists(trials(), max_size=4), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LOGS)
def test_several_logs_answer_as_their_merge_does_whatever_their_order(logs):
    merged = LogRecords({render_record(record): record for log in logs for record in log}.values())
    for order in (logs, logs[::-1]):
        own, *others = order
        union = LogRecords(own, also=[record for log in others for record in log])
        assert list(union) == own
        for kernel in ("dense-1", "conv-2"):
            for target in ("x86 v3", "arm"):
                assert union.best(kernel, target) == merged.best(kernel, target)
                for find in (LogRecords.measured, LogRecords.finals):
                    lines, wanted = (set(map(render_record, find(log, kernel, target))) for log in (union, merged))
                    assert lines == wanted
                elsewhere = set(map(render_record, union.from_elsewhere(kernel, target)))
                mine = {render_record(record) for record in own if not record.final}
                assert elsewhere == set(map(render_record, merged.measured(kernel, target))) - mine


def test_a_log_of_another_version_is_read_beside_ours_and_not_changed(tmp_path):
    old = tmp_path / "old.tune.jsonl"
    old.write_bytes(HEADER.replace(b'"version":2', b'"version":1') + render_record(trial(1)))
    before = old.read_bytes()
    with TuningLog.open(Path(tmp_path, "new.tune.jsonl"), also=[old]) as log:
        assert log.measured(*KEY) == (trial(1),)
    assert old.read_bytes() == before
