"""Tuning records to and from a MetaSchedule database (database_workload.json, database_tuning_record.json).

Such a database keeps kernels as IR, their schedules as traces of primitives and their times in seconds. It keeps no
template, no seed, no date, no TVM version, and of a failure only that it was one.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import meta_schedule as ms

from tvmbridge.errors import LogError, OutputError, is_interrupt, reason
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import Kernel, lower
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import Config, recorded_templates
from tvmbridge.schedules.metaschedule import TEMPLATE, workload
from tvmbridge.schedules.tensor_intrinsics import with_tvm_names
from tvmbridge.schedules.trace import render_trace
from tvmbridge.targets import Target
from tvmbridge.tuning.log import LogRecords, TrialRecord, TuningLog, read_log
from tvmbridge.tuning.record import now_utc

_WORKLOADS, _RECORDS = "database_workload.json", "database_tuning_record.json"
_FAILED_S = 1e10  # what MetaSchedule writes as the time of a trial that failed
_FAILED = "failed where the MetaSchedule database was made"
_UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """What became of the records: how many were mapped, of how many kernels, and how many were left, by reason."""

    mapped: int
    kernels: int
    left: dict[str, int]


def export_database(
    log: str | os.PathLike[str], model: ImportedModel, target: Target, folder: str | os.PathLike[str]
) -> Exchanged:
    """Write the log's records of the model's kernels on the target as a MetaSchedule database in `folder`.

    The folder is made where it is missing. OutputError where it holds a database already or cannot be written.
    """
    records = read_log(log)
    kernels = {kernel.key: kernel for kernel in lower(model, target).kernels}
    folder = Path(folder)
    if any((folder / name).exists() for name in (_WORKLOADS, _RECORDS)):
        raise OutputError(f"{folder} holds a MetaSchedule database already", hint="give another folder")
    left: collections.Counter[str] = collections.Counter()
    mapped: collections.Counter[str] = collections.Counter()
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tvmbridge-", dir=folder) as workspace:
            database = ms.database.JSONDatabase(work_dir=workspace)
            for record in records:
                if record.final:
                    left["of a final check, in a network"] += 1
                elif record.target != target.key:
                    left["of another target"] += 1
                elif record.kernel not in kernels:
                    left["of a kernel that the model does not have"] += 1
                elif why := _export(record, kernels[record.kernel], target, database):
                    left[why] += 1
                else:
                    mapped[record.kernel] += 1
            for name in (_WORKLOADS, _RECORDS):
                Path(workspace, name).touch()
                os.replace(Path(workspace, name), folder / name)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot write the database: {exc.strerror or exc}") from exc
    return Exchanged(mapped.total(), len(mapped), dict(left))


def _export(record: TrialRecord, kernel: Kernel, target: Target, database: ms.database.Database) -> str | None:
    """Put one record into the database; why not, where it does not map."""
    templates = (t for t in recorded_templates(kernel, target) if t.name == record.template)
    template = next(templates, None)
    if template is None or template.version != record.template_version:
        return f"of a template that this tvmbridge does not have: {record.template} {record.template_version}"
    try:
        trace = template.schedule(kernel, target, record.config).trace
    except Exception as exc:  # as in plan_kernel
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        return "the config does not apply to the kernel"
    if trace is None:
        return f"template {record.template} writes its loops itself, which no trace can say"
    run_secs = [time_us * 1e-6 for time_us in record.times_us] or [_FAILED_S]
    kept = database.commit_workload(workload(kernel))
    arguments = ms.arg_info.ArgInfo.from_prim_func(kernel.function)
    stated = ms.database.TuningRecord(with_tvm_names(trace), kept, run_secs, tvm_target(target), arguments)
    database.commit_tuning_record(stated)
    return None


def import_database(
    folder: str | os.PathLike[str], model: ImportedModel, target: Target, log: str | os.PathLike[str]
) -> Exchanged:
    """Append to the log what a MetaSchedule database says of the model's kernels on the target.

    A record maps if its kernel is one of the model's, its target agrees with `target` in all that it states of kind,
    CPU, features, cores and architecture, and its trace is one that we replay. LogError where there is no database.
    """
    lines = {name: _read_lines(Path(folder) / name) for name in (_WORKLOADS, _RECORDS)}
    kernels = lower(model, target).kernels
    owners = [_find_kernel(line, kernels) for line in lines[_WORKLOADS]]
    left: collections.Counter[str] = collections.Counter()
    mapped: list[TrialRecord] = []
    with TuningLog.open(log) as records:
        known = _known(records)
        for line in lines[_RECORDS]:
            record = _import(line, owners, target)
            if isinstance(record, str):
                left[record] += 1
            elif (record.kernel, record.target, record.config_key) in known:
                left["in the log already"] += 1
            else:
                known.add((record.kernel, record.target, record.config_key))
                mapped.append(record)
        records.append(mapped)
    return Exchanged(len(mapped), len({record.kernel for record in mapped}), dict(left))


def _known(records: LogRecords) -> set[tuple[str, str, str]]:
    ours = (TEMPLATE.name, TEMPLATE.version)
    return {(r.kernel, r.target, r.config_key) for r in records if (r.template, r.template_version) == ours}


def _read_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as exc:
        hint = f"give the folder that holds {_WORKLOADS} and {_RECORDS}"
        raise LogError(f"{path}: cannot read the MetaSchedule database: {exc.strerror}", hint=hint) from exc


def _find_kernel(line: bytes, kernels: tuple[Kernel, ...]) -> Kernel | None:
    """The kernel that a line of workloads is about."""
    try:
        module = ms.database.Workload.from_json(json.loads(line)).mod
        (function,) = (function for _, function in module.functions_items())
    except Exception as exc:  # TVM's reader raises many kinds; a kernel that it cannot read is none of ours
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        return None
    plain = _plain(function)
    return next((kernel for kernel in kernels if tvm_ffi.structural_equal(plain, _plain(kernel.function))), None)


def _plain(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """The function without attributes: its name, and what passes have noted of it."""
    for name in function.attrs.keys() if function.attrs is not None else ():
        function = function.without_attr(name)
    return function


def _import(line: bytes, owners: list[Kernel | None], target: Target) -> TrialRecord | str:
    """The record of a line; why not, where it does not map."""
    try:
        index, (trace, run_secs, measured_on, _) = json.loads(line)
        times = [float(seconds) for seconds in run_secs or ()]
        kernel = owners[index] if index >= 0 else None
    except (ValueError, TypeError, IndexError, RecursionError):
        return "a damaged line"
    if kernel is None:
        return "of a kernel that the model does not have"
    if not times:
        return "without a time"
    if not _agree(measured_on, target):
        return "of another target"
    try:
        config: Config = {"trace": render_trace(trace)}
        TEMPLATE.schedule(kernel, target, config)
    except Exception as exc:  # as in plan_kernel
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        return f"the trace cannot be replayed: {reason(exc)}"
    failed = max(times) >= _FAILED_S
    if not failed and not all(math.isfinite(seconds) and seconds > 0 for seconds in times):
        return "without a time"
    return TrialRecord(
        kernel=kernel.key,
        target=target.key,
        template=TEMPLATE.name,
        template_version=TEMPLATE.version,
        config=config,
        times_us=() if failed else tuple(round(seconds * 1e6, 6) for seconds in times),
        error=_FAILED if failed else None,
        tvm=_UNKNOWN,
        seed=0,
        when=now_utc(),
        emulated=target.emulated,
    )


def _agree(stated: object, target: Target) -> bool:
    """Whether nothing that a database states of its target contradicts ours."""
    ours = dict(tvm_target(target).export())
    return isinstance(stated, dict) and all(_said(ours, key) == said for key, said in _statements(stated))


def _statements(stated: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("kind", "mtriple", "mcpu", "mattr", "num-cores", "arch"):
        if stated.get(key):
            yield key, _said(stated, key)


def _said(attributes: dict[str, Any], key: str) -> Any:
    said = attributes.get(key)
    if key == "mtriple":
        return str(said).partition("-")[0]  # the rest names the vendor, in many ways
    return sorted(map(str, said)) if key == "mattr" and said else said
