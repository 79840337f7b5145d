"""Tuning records to and from MetaSchedule databases: what maps, what does not, and that TVM finds what we wrote."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_models
import pytest
from kernels import imported, random_array, relax_module, runnable_targets
from tvm import relax
from tvm.s_tir import meta_schedule as ms

from tvmbridge import cli
from tvmbridge.errors import LogError, OutputError
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import lower
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import recorded_templates
from tvmbridge.schedules.metaschedule import TEMPLATE, workload
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine, metaschedule_tasks
from tvmbridge.tuning.exchange import Exchanged, export_database, import_database
from tvmbridge.tuning.log import LogRecords, TrialRecord, TuningLog, read_log
from tvmbridge.tuning.tasks import Candidate

pytestmark = pytest.mark.compiler

F32 = "float32"
NATIVE = runnable_targets()[0]
WEIGHTS = random_array(np.random.default_rng(0), (19, 37), F32)


def network() -> ImportedModel:
    op = relax.op
    return imported(
        relax_module(lambda x: op.nn.softmax(op.nn.relu(op.matmul(x, relax.const(WEIGHTS)))), [((13, 19), F32)])
    )


def other_network() -> ImportedModel:
    return imported(relax_module(lambda x: relax.op.exp(x), [((5, 7), F32)]))


def records_of(candidates: Sequence[Candidate]) -> list[TrialRecord]:
    """Records with different times; the third one failed."""
    return [
        TrialRecord(
            kernel=candidate.kernel.key,
            target=NATIVE.key,
            template=candidate.template.name,
            template_version=candidate.template.version,
            config=candidate.config,
            times_us=() if index == 2 else (3.25 + index, 1000 / 3),
            error="did not work" if index == 2 else None,
            tvm="0",
            seed=4,
            when="2026-01-01T00:00:00Z",
        )
        for index, candidate in enumerate(candidates)
    ]


@functools.cache
def traces() -> tuple[Candidate, ...]:
    """A few of MetaSchedule's for each kernel of the network."""
    found = []
    for task in metaschedule_tasks(lower(network(), NATIVE), NATIVE, LogRecords()):
        engine = MetaScheduleEngine([task], NATIVE, seed=1)
        engine.learn([task.untuned], records_of([task.untuned]))
        found += engine.next_batch(4)
    return tuple(found)


def write_log(path: Path, records: Sequence[TrialRecord]) -> Path:
    with TuningLog.open(path) as log:
        log.append(records)
    return path


def said(record: TrialRecord) -> tuple:
    """What a database can keep of a record."""
    times_us = tuple(round(time_us, 6) for time_us in record.times_us)
    return record.kernel, record.target, record.template, record.config_key, times_us


def test_traces_go_to_a_database_and_come_back_the_same(tmp_path: Path) -> None:
    written = records_of(traces())
    log = write_log(tmp_path / "a.tune.jsonl", written)
    exported = export_database(log, network(), NATIVE, tmp_path / "database")
    assert exported == Exchanged(len(written), 2, {})
    back = tmp_path / "b.tune.jsonl"
    assert import_database(tmp_path / "database", network(), NATIVE, back) == exported
    assert [said(record) for record in read_log(back)] == [said(record) for record in written]
    assert [record.error is None for record in read_log(back)] == [record.error is None for record in written]
    again = import_database(tmp_path / "database", network(), NATIVE, back)
    assert again == Exchanged(0, 0, {"in the log already": len(written)})


def test_tvm_finds_the_best_record_of_each_kernel(tmp_path: Path) -> None:
    lowered = lower(network(), NATIVE)
    written = records_of(traces())
    export_database(write_log(tmp_path / "a.tune.jsonl", written), network(), NATIVE, tmp_path / "database")
    database = ms.database.JSONDatabase(work_dir=str(tmp_path / "database"))
    assert len(database) == len(written)
    for kernel in lowered.kernels:
        best = LogRecords(written).best(kernel.key, NATIVE.key)
        found = database.query_tuning_record(workload(kernel), tvm_target(NATIVE), "main")
        assert best is not None
        assert [float(seconds) * 1e6 for seconds in found.run_secs] == pytest.approx(best.times_us)
        assert database.query_schedule(workload(kernel), tvm_target(NATIVE), "main") is not None
    with database, tvm_target(NATIVE):
        applied = relax.transform.MetaScheduleApplyDatabase()(lowered.module)
    assert all(applied[kernel.name].attrs["tirx.is_scheduled"] for kernel in lowered.kernels)


def test_templates_map_where_their_schedule_is_made_of_primitives(tmp_path: Path) -> None:
    lowered = lower(network(), NATIVE)
    candidates = [
        Candidate(kernel, template, config)
        for kernel in lowered.kernels
        for template in recorded_templates(kernel, NATIVE)
        for config in template.configs(kernel, NATIVE)[:1]
    ]
    log = write_log(tmp_path / "a.tune.jsonl", records_of(candidates))
    exported = export_database(log, network(), NATIVE, tmp_path / "database")
    others = {c.template.name for c in candidates} - {"default"}
    assert others >= {"contraction", "rows"}
    assert exported.mapped == 2 and exported.kernels == 2
    assert exported.left == {f"template {name} writes its loops itself, which no trace can say": 1 for name in others}
    back = import_database(tmp_path / "database", network(), NATIVE, tmp_path / "b.tune.jsonl")
    assert (back.mapped, back.left) == (2, {})
    assert {record.template for record in read_log(tmp_path / "b.tune.jsonl")} == {TEMPLATE.name}


def test_what_does_not_map_is_counted_with_its_reason(tmp_path: Path) -> None:
    candidates = traces()
    good, other, old, strange, broken = records_of([*candidates[:2], *candidates[:3]])
    other = msgspec.structs.replace(other, target=parse_preset("arm:cortex-a72").key)
    old = msgspec.structs.replace(old, template_version=99)
    strange = msgspec.structs.replace(strange, kernel="none of the model's")
    broken = msgspec.structs.replace(broken, config={"trace": "[]"})
    log = write_log(tmp_path / "a.tune.jsonl", [good, other, old, strange, broken])
    exported = export_database(log, network(), NATIVE, tmp_path / "database")
    assert exported.mapped == 1
    assert exported.left == {
        "of another target": 1,
        "of a template that this tvmbridge does not have: metaschedule 99": 1,
        "of a kernel that the model does not have": 1,
        "the config does not apply to the kernel": 1,
    }


def database_of(tmp_path: Path) -> tuple[Path, list]:
    """A database with one record, and that record."""
    log = write_log(tmp_path / "a.tune.jsonl", records_of(traces()[:1]))
    export_database(log, network(), NATIVE, tmp_path / "database")
    path = tmp_path / "database" / "database_tuning_record.json"
    return path, json.loads(path.read_text())


def test_records_that_a_database_has_wrong_are_counted_and_the_others_imported(tmp_path: Path) -> None:
    path, (index, (trace, run_secs, target, arguments)) = database_of(tmp_path)
    lines = [
        [index, [trace, run_secs, target, arguments]],
        [99, [trace, run_secs, target, arguments]],
        [-1, [trace, run_secs, target, arguments]],
        [index, [trace, None, target, arguments]],
        [index, [trace, [-1.0], target, arguments]],
        [index, [trace, run_secs, {**target, "mcpu": "cortex-a72"}, arguments]],
        [index, [trace, run_secs, {"kind": "cuda", "arch": "sm_90"}, arguments]],
        [index, [trace, run_secs, "llvm", arguments]],
        [index, [[[["Tensorize", ["b0"], ["x"], []]], []], run_secs, target, arguments]],
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '[0, [[[["GetSB')
    done = import_database(path.parent, network(), NATIVE, tmp_path / "b.tune.jsonl")
    assert done == Exchanged(
        1,
        1,
        {
            "a damaged line": 2,
            "of a kernel that the model does not have": 1,
            "without a time": 2,
            "of another target": 3,
            "the trace cannot be replayed: ValueError: step 0 of the trace: the primitive Tensorize is not replayed": 1,
        },
    )
    assert len(read_log(tmp_path / "b.tune.jsonl")) == 1


def test_a_target_that_says_less_agrees_with_ours(tmp_path: Path) -> None:
    path, (index, (trace, run_secs, _, arguments)) = database_of(tmp_path)
    path.write_text(json.dumps([index, [trace, run_secs, {"kind": "llvm", "num-cores": NATIVE.cores}, arguments]]))
    assert import_database(path.parent, network(), NATIVE, tmp_path / "b.tune.jsonl").mapped == 1


def test_kernels_of_other_models_and_damaged_ones_are_left(tmp_path: Path) -> None:
    path, _ = database_of(tmp_path)
    done = import_database(path.parent, other_network(), NATIVE, tmp_path / "b.tune.jsonl")
    assert done == Exchanged(0, 0, {"of a kernel that the model does not have": 1})
    (path.parent / "database_workload.json").write_text('["1", "AAAA"]\n')
    done = import_database(path.parent, network(), NATIVE, tmp_path / "b.tune.jsonl")
    assert done == Exchanged(0, 0, {"of a kernel that the model does not have": 1})


def test_a_folder_that_holds_a_database_is_not_written_to(tmp_path: Path) -> None:
    path, _ = database_of(tmp_path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="holds a MetaSchedule database already"):
        export_database(tmp_path / "a.tune.jsonl", network(), NATIVE, path.parent)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_a_folder_without_a_database_is_an_error_that_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"database_workload\.json: cannot read(.|\n)*hint: give the folder"):
        import_database(tmp_path, network(), NATIVE, tmp_path / "b.tune.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_commands_say_what_mapped_and_what_did_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        code = ended.value.code
        assert isinstance(code, int)
        return code, capsys.readouterr().out

    from tvmbridge.frontend import import_onnx

    model, database = tmp_path / "m.onnx", tmp_path / "database"
    onnx.save(onnx_models.mlp("batch"), model)
    lowered = lower(import_onnx(str(model), dims={"batch": 5}), NATIVE)
    kernel = lowered.kernels[0]
    candidates = [Candidate(kernel, t, t.guess(kernel, NATIVE)) for t in recorded_templates(kernel, NATIVE)[:-1]]
    log = write_log(tmp_path / "m.tune.jsonl", records_of(candidates))
    options = ("--model", model, "--dim", "batch=5", "--target", "native")
    code, out = run("log", "export", log, *options, "-o", database)
    assert code == 0
    assert out.splitlines()[0] == f"wrote {database}: 1 of {len(candidates)} records, of 1 kernels"
    assert "left out 1: template contraction writes its loops itself, which no trace can say" in out
    code, out = run("log", "import", database, *options, "-o", tmp_path / "b.tune.jsonl", "--json")
    assert code == 0
    assert json.loads(out) == {"output": str(tmp_path / "b.tune.jsonl"), "mapped": 1, "kernels": 1, "left": {}}
    assert run("log", "export", log, *options, "--target", "arm", "-o", tmp_path / "c")[0] == 2
    assert run("log", "export", log, *options, "-o", database)[0] == 1
