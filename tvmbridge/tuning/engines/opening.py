"""Chooses the engine by its name: its tasks, and the engine itself."""

from __future__ import annotations

from collections.abc import Sequence

from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import Target
from tvmbridge.tuning.engines import Engine
from tvmbridge.tuning.engines.templates import TemplateEngine
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.tasks import Task, find_tasks

# "templates": the configs of tvmbridge's own schedule templates; "metaschedule": the spaces of TVM's MetaSchedule.
ENGINES = ("templates", "metaschedule")


def engine_tasks(engine: str, lowered: LoweredModel, target: Target, records: LogRecords) -> list[Task]:
    """What the engine can tune of a model, with what the records know of it."""
    if engine == "metaschedule":
        from tvmbridge.tuning.engines.metaschedule import metaschedule_tasks  # TVM's tuner takes a while to import

        return metaschedule_tasks(lowered, target, records)
    return find_tasks(lowered, target, records)


def open_engine(engine: str, tasks: Sequence[Task], target: Target, records: LogRecords, seed: int) -> Engine:
    """The engine for these tasks; it learns from all that the records hold for the target."""
    if engine == "metaschedule":
        from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine

        return MetaScheduleEngine(tasks, target, seed)
    kernels = {task.kernel.key for task in tasks}
    others = (record for record in records.trials_on(target.key) if record.kernel not in kernels)
    return TemplateEngine(tasks, seed, others)
