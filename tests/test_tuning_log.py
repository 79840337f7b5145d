"""The tuning log: its format, its lookups, its end after a crash, and what it refuses."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvmbridge.errors import LogError, OutputError
from tvmbridge.tuning.log import LogRecords, TrialRecord, TuningLog, merge_logs, parse_log, read_log
from tvmbridge.tuning.record import parse_record, render_header, render_record

GOLDEN, GOLDEN_V2 = (Path(__file__).parent / "golden" / f"log-v{version}.tune.jsonl" for version in (1, 2))
ROOT = Path(__file__).parent.parent
HEADER = render_header("tvmbridge test")
HEADER_V1 = b'{"format":"tvmbridge-tuning-log","version":1,"created_by":"tvmbridge test"}\n'


def trial(number: int = 0, **fields) -> TrialRecord:
    values = {
        "kernel": "dense-1",
        "target": "x86 v3",
        "template": "dense",
        "template_version": 1,
        "config": {"mr": number, "pack": True},
        "times_us": (10.0 + number,),
        "error": None,
        "tvm": "0.27.0",
        "seed": 0,
        "when": "2026-11-23T10:00:00Z",
    }
    return TrialRecord(**{**values, **fields})


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=3).map(tuple)
OUTCOMES = st.one_of(st.tuples(TIMES, st.none()), st.tuples(st.just(()), TEXT))


@st.composite
def trials(draw) -> TrialRecord:
    times_us, error = draw(OUTCOMES)
    return TrialRecord(
        kernel=draw(st.sampled_from(["dense-1", "conv-2"])),
        target=draw(st.sampled_from(["x86 v3", "arm"])),
        template=draw(TEXT),
        template_version=draw(st.integers(1, 3)),
        config=draw(st.dictionaries(TEXT, st.one_of(INTEGERS, TEXT, st.booleans()), max_size=4)),
        times_us=times_us,
        error=error,
        tvm=draw(TEXT),
        seed=draw(INTEGERS),
        when=draw(st.sampled_from(["2026-11-23T10:00:00Z", "2026-11-23T10:00:01Z"])),
        final=draw(st.booleans()),
    )


def write_log(path: Path, records) -> Path:
    path.write_bytes(HEADER + b"".join(render_record(record) for record in records))
    return path


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[1:-1]


def test_the_frozen_log_of_version_1_is_read_with_all_it_says():
    log = read_log(GOLDEN)
    x86, arm = "x86 x86_64-linux-gnu x86-64-v4 cores=2 hardware=Example CPU", next(reversed(list(log))).target
    kernel = "conv2d-5f1c0a9e|1x3x224x224,64x3x7x7|float32"
    assert len(log) == 4
    assert log.torn is None
    first, second, failed, other = log
    assert first == TrialRecord(
        kernel=kernel,
        target=x86,
        template="conv2d",
        template_version=1,
        config={"mr": 14, "nr": 32, "pack": True, "unroll_k": 4, "order": "mn"},
        times_us=(812.5, 799.25, 1003.0),
        error=None,
        tvm="0.27.0.post1",
        seed=0,
        when="2026-11-23T10:00:00Z",
    )
    assert first.median_us == 812.5
    assert second.median_us == 647.75
    assert failed.median_us is None
    assert failed.error == "no answer within 10 s — “stopped”"
    assert other.config == {}
    assert arm == "arm aarch64-linux-gnu cortex-a72 cores=4 hardware=Example Board"
    assert log.best(kernel, x86) == second
    assert log.best(kernel, arm) == other
    assert log.measured(kernel, x86) == (first, second, failed)


def test_the_frozen_log_of_version_2_is_read_with_all_it_says():
    log, v1 = read_log(GOLDEN_V2), list(read_log(GOLDEN))
    x86, kernel = v1[0].target, v1[0].kernel
    assert list(log)[:4] == v1 and len(log) == 9
    assert log.measured(kernel, x86) == tuple(v1[:3])
    assert log.finals(kernel, x86) == tuple(log)[6:]
    assert [(r.config_key, r.median_us, r.error) for r in log.finals(kernel, x86)] == [
        (v1[0].config_key, 611.5, None),
        (v1[1].config_key, 655.0, None),
        ("{}", None, "the network did not run"),
    ]
    assert log.best(kernel, x86) == tuple(log)[6]
    assert log.best(kernel, x86, "default") is None
    assert log.finals(kernel, v1[3].target) == () and log.best(kernel, v1[3].target) == v1[3]


def test_a_record_of_a_final_check_is_one_more_field_at_the_end_of_its_line():
    line = render_record(trial(1))
    assert b"final" not in line
    assert render_record(trial(1, final=True)) == line[:-2] + b',"final":true}\n'
    assert parse_record(line[:-2] + b',"final":false}', "log:2") == trial(1)


def test_the_last_final_check_decides_and_where_it_says_nothing_the_trials_do():
    quick = trial(1, times_us=(1.0,))
    early = trial(2, times_us=(2.0,), final=True, when="2026-11-23T10:00:00Z")
    late = [trial(n, times_us=(float(n),), final=True, when="2026-11-23T10:00:01Z") for n in (4, 3)]
    failed = trial(5, times_us=(), error="crashed", template="other", final=True, when="2026-11-23T10:00:01Z")
    tried = trial(5, times_us=(9.0,), template="other")
    log = LogRecords([quick, *late, early, failed, tried])
    assert log.measured("dense-1", "x86 v3") == (quick, tried)
    assert log.finals("dense-1", "x86 v3") == (*late, failed)
    assert log.best("dense-1", "x86 v3") == late[1]
    assert log.best("dense-1", "x86 v3", "dense", 1) == late[1]
    assert log.best("dense-1", "x86 v3", "other") == tried
    assert log.best("dense-1", "x86 v3", "dense", 2) is None
    assert log.finals("dense-1", "arm") == log.finals("conv-2", "x86 v3") == ()


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first test that draws text waits for Unicode's tables
@given(st.lists(trials(), max_size=8))
def test_every_record_is_a_trial_or_of_a_final_check_and_the_best_is_of_the_last_check_where_one_worked(records):
    log = LogRecords(records)
    for key in {(record.kernel, record.target) for record in records}:
        mine = [record for record in records if (record.kernel, record.target) == key]
        finals = log.finals(*key)
        assert list(log.measured(*key)) == [record for record in mine if not record.final]
        assert len({record.when for record in finals}) <= 1
        assert all(r.when < finals[0].when for r in mine if r.final and r not in finals)
        best = log.best(*key)
        assert (best is None) == all(record.error is not None for record in (*log.measured(*key), *finals))
        if best is not None:
            rivals = finals if best.final else log.measured(*key)
            assert best.median_us == min(r.median_us for r in rivals if r.median_us is not None)
            assert best.final or all(record.error is not None for record in finals)


@pytest.mark.parametrize("torn", [b"", b'{"kernel":"dense-1","tar'])
def test_a_log_of_version_1_becomes_one_of_version_2_when_it_is_opened_for_appending(tmp_path, torn):
    path = tmp_path / "a.tune.jsonl"
    path.write_bytes(GOLDEN.read_bytes() + torn)
    path.chmod(0o640)
    records = list(read_log(GOLDEN))
    with TuningLog.open(path) as log:
        assert list(log) == records and (log.torn is None) == (not torn)
        log.append([trial(1, final=True)])
    header, *lines = path.read_bytes().splitlines(keepends=True)
    assert header == b'{"format":"tvmbridge-tuning-log","version":2,"created_by":"tvmbridge 0.1.0"}\n'
    assert b"".join(lines) == GOLDEN.read_bytes().partition(b"\n")[2] + render_record(trial(1, final=True))
    assert list(read_log(path)) == [*records, trial(1, final=True)]
    assert path.stat().st_mode & 0o777 == 0o640
    inode = path.stat().st_ino
    TuningLog.open(path).close()
    assert path.stat().st_ino == inode


def test_reading_and_merging_from_a_log_of_version_1_leaves_it_as_it_is(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    path.write_bytes(GOLDEN.read_bytes())
    assert list(merge_logs([path], tmp_path / "b")) == list(read_log(path)) == list(read_log(tmp_path / "b"))
    assert path.read_bytes() == GOLDEN.read_bytes()
    assert b'"version":2' in (tmp_path / "b").read_bytes()


def test_a_log_of_version_1_knows_no_final_check():
    with pytest.raises(LogError, match="log:2: not a record of a version 1 tuning log: version 1 has no field `final`"):
        parse_log(HEADER_V1 + render_record(trial(final=True)), "log")
    assert list(parse_log(HEADER_V1 + render_record(trial()), "log")) == [trial()]


@settings(max_examples=60, deadline=None)
@given(st.lists(trials(), max_size=6))
def test_what_is_appended_is_read_back_alike(records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tune.jsonl")
        with TuningLog.open(path) as log:
            for record in records:
                log.append([record])
            assert list(log) == records
        with TuningLog.open(path) as log:
            log.append(records)
        assert list(read_log(path)) == records * 2


@given(trials())
def test_a_record_is_one_line_and_its_text_does_not_depend_on_the_order_of_its_config(record):
    line = render_record(record)
    backwards = msgspec.structs.replace(record, config=dict(reversed(record.config.items())))
    assert line.count(b"\n") == 1
    assert render_record(backwards) == line
    assert backwards.config_key == record.config_key
    assert parse_record(line, "log:2") == record


def test_the_numbers_0_and_1_are_not_the_same_config_as_false_and_true():
    assert trial(config={"pack": True}).config_key != trial(config={"pack": 1}).config_key


def test_a_failed_trial_is_measured_but_never_best():
    failed = trial(1, times_us=(), error="no answer within 10 s")
    log = parse_log(HEADER + render_record(failed), "log")
    assert log.measured("dense-1", "x86 v3") == (failed,)
    assert log.best("dense-1", "x86 v3") is None


def test_a_record_of_another_target_or_kernel_or_template_is_never_an_answer():
    fast = trial(1, times_us=(1.0,))
    old = trial(2, times_us=(2.0,), template="other", template_version=3)
    log = parse_log(HEADER + render_record(fast) + render_record(old), "log")
    assert log.best("dense-1", "x86 v4") is None
    assert log.best("dense-2", "x86 v3") is None
    assert log.measured("dense-1", "arm") == ()
    assert log.best("dense-1", "x86 v3") == fast
    assert log.best("dense-1", "x86 v3", "other") == old
    assert log.best("dense-1", "x86 v3", "other", template_version=4) is None


@given(st.lists(trials(), max_size=6), st.randoms(use_true_random=False))
def test_the_best_trial_does_not_depend_on_the_order_of_the_log(records, shuffler):
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    one, other = (
        parse_log(HEADER + b"".join(map(render_record, order)), "log").best("dense-1", "x86 v3")
        for order in (records, shuffled)
    )
    assert one == other


def test_an_empty_file_is_a_fresh_log(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    path.touch()
    assert len(read_log(path)) == 0
    with TuningLog.open(path) as log:
        log.append([trial()])
    assert len(read_log(path)) == 1


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_log_cut_at_any_byte_of_its_last_line_keeps_every_other_record_and_goes_on(tmp_path, ending):
    path = write_log(tmp_path / "a.tune.jsonl", [trial(1), trial(2, error="é" * 3, times_us=())])
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        kept = [trial(1)] if end < len(whole) - 1 else [trial(1), trial(2, error="é" * 3, times_us=())]
        read = parse_log(whole[:end], "a.tune.jsonl")
        assert list(read) == kept
        assert (read.torn is None) == (end in (last, len(whole) - 1))
        path.write_bytes(whole[:end])
        with TuningLog.open(path) as log:
            assert log.torn is None or "a.tune.jsonl:3: unfinished last line" in log.torn
            if ending:
                log.append([trial(3)])
        assert list(read_log(path)) == kept + ([trial(3)] if ending else [])
        assert read_log(path).torn is None


def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    path.write_bytes(HEADER + render_record(trial(1)) + b"<<<<<<< ours\n" + render_record(trial(2)))
    before = path.read_bytes()
    for use in (read_log, TuningLog.open):
        with pytest.raises(LogError, match=r"a\.tune\.jsonl:3: not a record"):
            use(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"times_us": [1, -2]}, "not all positive"),
        ({"times_us": []}, "either times_us or an error"),
        ({"error": "and times"}, "either times_us or an error"),
        ({"when": "yesterday"}, "when"),
        ({"when": "2026-11-23T10:00:00Z\n"}, "when"),
        ({"config": {"mr": 1.5}}, "config"),
        ({"config": {"mr": None}}, "config"),
        ({"template_version": "1"}, "template_version"),
        ({"final": 1}, "final"),
    ],
)
def test_a_line_that_is_not_a_record_of_this_version_is_refused(change, message):
    line = msgspec.json.encode({**msgspec.to_builtins(trial(1)), **change}) + b"\n"
    with pytest.raises(LogError, match=message):
        parse_log(HEADER + line, "log")


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    with TuningLog.open(path) as log:
        for bad in (trial(when="now"), trial(config={"mr": 1.5}), trial(kernel=7)):
            with pytest.raises(ValueError, match="not a trial record"):
                log.append([trial(1), bad])
        log.append([])
        assert len(log) == 0
    with pytest.raises(ValueError, match="closed"):
        log.append([trial(1)])
    assert len(read_log(path)) == 0


@pytest.mark.parametrize(
    "foreign",
    [
        b"x",
        b"{",
        b"[]\n",
        b'{"format":"other","version":1}\n',
        b"\n\n",
        b"\xff\xfe\n",
        b"[" * 99999 + b"\n",
        HEADER[:-1],
    ],
)
def test_a_foreign_file_is_refused_and_left_as_it_was(tmp_path, foreign):
    path = tmp_path / "notes.txt"
    path.write_bytes(foreign)
    good = write_log(tmp_path / "a.tune.jsonl", [trial(1)])
    for use in (read_log, TuningLog.open, lambda output: merge_logs([good], output)):
        with pytest.raises(LogError, match=r"notes\.txt is not a tuning log"):
            use(path)
        assert path.read_bytes() == foreign


def test_a_log_of_a_newer_version_is_refused_as_such():
    with pytest.raises(LogError, match="written by a newer tvmbridge"):
        parse_log(b'{"format":"tvmbridge-tuning-log","version":3,"new":{"er":[]}}\nanything\n', "log")
    with pytest.raises(LogError, match=r"written by tvmbridge 9\.0"):
        parse_log(b'{"format":"tvmbridge-tuning-log","version":3,"created_by":"tvmbridge 9.0"}\n', "log")


@pytest.mark.parametrize(
    "rest", [b'"version":0,"created_by":""}', b'"version":1}', b'"version":1,"created_by":"","x":1}']
)
def test_a_damaged_header_is_refused(rest):
    with pytest.raises(LogError, match="log:1: damaged header"):
        parse_log(b'{"format":"tvmbridge-tuning-log",' + rest + b"\n", "log")


def test_two_writers_are_kept_apart_and_the_second_is_told_who_holds_the_log(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    link = tmp_path / "link.tune.jsonl"
    link.symlink_to(path)
    with TuningLog.open(path) as log:
        for other in (path, link):
            with pytest.raises(LogError, match=f"in use by process {os.getpid()} on"):
                TuningLog.open(other)
        with pytest.raises(LogError, match="in use"):
            merge_logs([path], path)
        assert len(read_log(path)) == 0
        log.append([trial(1)])
    with TuningLog.open(link) as log:
        assert len(log) == 1
    assert link.is_symlink()


def test_missing_and_unwritable_paths_are_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="absent"):
        read_log(tmp_path / "absent.tune.jsonl")
    for path in (tmp_path / "no" / "a.tune.jsonl", tmp_path / "file" / "a.tune.jsonl", tmp_path / ("long" * 99)):
        with pytest.raises(OutputError, match=path.name):
            TuningLog.open(path)
        with pytest.raises(OutputError, match=path.name):
            merge_logs([], path)
    for use in (read_log, TuningLog.open, lambda path: merge_logs([], path)):
        with pytest.raises(LogError, match="not a regular file"):
            use(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from tvmbridge.errors import OutputError
from tvmbridge.tuning.log import TuningLog, merge_logs, read_log
path, good = map(Path, sys.argv[1:])
records = list(read_log(good))
with TuningLog.open(path) as log:
    log.append(records[:1])
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, len(before) + 50))
    for attempt in (lambda: log.append(records), lambda: merge_logs([good], path)):
        try:
            attempt()
        except OutputError as error:
            assert path.read_bytes() == before
            print(error.message)
assert list(read_log(path)) == records[:1]
"""


def test_a_full_disk_loses_nothing_that_was_logged_and_leaves_no_other_file(tmp_path):
    good = write_log(tmp_path / "good.tune.jsonl", [trial(number) for number in range(5)])
    path = tmp_path / "a.tune.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, good], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a.tune.jsonl: cannot write the tuning log") == 2
    assert {entry.name.removesuffix(".lock") for entry in tmp_path.iterdir()} == {good.name, path.name}


@settings(max_examples=40, deadline=None)
@given(st.lists(trials(), max_size=5), st.lists(trials(), max_size=5))
def test_a_merge_is_idempotent_keeps_the_order_and_drops_what_is_identical(first, second):
    with tempfile.TemporaryDirectory() as folder:
        a, b = (write_log(Path(folder, name), records) for name, records in (("a", first), ("b", second)))
        ab, ba, aa = (Path(folder, name) for name in ("ab", "ba", "aa"))
        merge_logs([a, b], ab)
        merge_logs([b, a], ba)
        merge_logs([a, a], aa)
        wanted = list(dict.fromkeys(map(render_record, [*first, *second])))
        assert [line + b"\n" for line in lines_of(ab)] == wanted
        assert set(lines_of(ab)) == set(lines_of(ba))
        assert lines_of(aa) == list(dict.fromkeys(lines_of(a)))
        once = ab.read_bytes()
        assert len(merge_logs([b, ab, a], ab)) == len(wanted)
        assert ab.read_bytes() == once


def test_a_merge_keeps_what_the_output_had_and_takes_all_but_the_torn_line_of_a_log(tmp_path):
    output = write_log(tmp_path / "out.tune.jsonl", [trial(1)])
    torn = write_log(tmp_path / "torn.tune.jsonl", [trial(2), trial(3)])
    torn.write_bytes(torn.read_bytes()[:-9])
    assert list(merge_logs([torn], output)) == [trial(1), trial(2)]
    assert list(read_log(output)) == [trial(1), trial(2)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", HEADER_V1, HEADER]), st.binary(max_size=80))
def test_any_bytes_are_a_log_or_a_log_error(header, data):
    try:
        log = parse_log(header + data, "fuzz")
    except LogError as error:
        assert "fuzz" in error.message
    else:
        assert len(log) == 0 or header


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([GOLDEN, GOLDEN_V2]), st.integers(min_value=0), st.integers(0, 255))
def test_a_log_with_one_byte_changed_is_a_log_or_a_log_error(golden, position, byte):
    data = bytearray(golden.read_bytes())
    data[position % len(data)] = byte
    try:
        log = parse_log(bytes(data), "fuzz")
    except LogError as error:
        assert "fuzz" in error.message
    else:
        whole = len(read_log(golden))
        assert whole - 1 <= len(log) <= whole


APPEND_FOR_EVER = """
import itertools, sys
import msgspec
from tvmbridge.tuning.log import TuningLog
with TuningLog.open(sys.argv[1]) as log:
    pattern = next(iter(log))
    for number in itertools.count(int(sys.argv[2])):
        log.append([msgspec.structs.replace(pattern, seed=2 * number + half) for half in (0, 1)])
        print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_neither_loses_nor_doubles_a_record(tmp_path):
    path = tmp_path / "a.tune.jsonl"
    moments = random.Random(7)
    with TuningLog.open(path) as log:
        log.append([trial(1, seed=-1, error="long " * 2000, times_us=())])
    first = 0
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", APPEND_FOR_EVER, path, str(first)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        for _ in range(moments.randrange(1, 30)):
            promised = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        promised = max([promised, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        with TuningLog.open(path) as log:
            seeds = [record.seed for record in log][1:]
        assert seeds == list(range(len(seeds)))
        assert len(seeds) >= 2 * (promised + 1)
        # A batch of which only the first record reached the file is filled up, so that the count goes on in pairs.
        if len(seeds) % 2:
            with TuningLog.open(path) as log:
                log.append([msgspec.structs.replace(next(iter(log)), seed=len(seeds))])
        first = (len(seeds) + 1) // 2
    assert first > 5
