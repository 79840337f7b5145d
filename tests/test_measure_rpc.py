"""Measuring on the devices of an RPC tracker: any number of them, whatever becomes of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import tvm
from kernels import lower_expression, lower_function, random_array, runnable_targets
from rpc_farm import Farm, answers, end, free_port, running_farm, wait_for
from tvm import relax, te
from tvm.script import tirx as T  # noqa: N812

from tvmbridge.errors import TuningError
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import fitting_templates
from tvmbridge.targets import RpcMeasure, Target
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure import Measurer, rpc
from tvmbridge.tuning.measure.opening import open_measurer
from tvmbridge.tuning.measure.tracker import count_devices, why_not_rpc
from tvmbridge.tuning.record import TrialRecord, render_config
from tvmbridge.tuning.tasks import Candidate, find_tasks

pytestmark = [pytest.mark.compiler, pytest.mark.slow]

NATIVE = runnable_targets()[0]
KEYS = (f"key{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def module_farm() -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture
def farm(module_farm: Farm) -> Iterator[Farm]:
    yield module_farm
    module_farm.kill_all()


def candidates(target: Target, count: int) -> list[Candidate]:
    """Ways to schedule a matmul."""
    weights = random_array(np.random.default_rng(0), (64, 64), "float32")
    lowered = lower_expression(
        lambda x: relax.op.matmul(x, relax.const(weights, "float32")), [((24, 64), "float32")], target
    )
    (task,) = find_tasks(lowered, target, LogRecords())
    return task.untried[:count]


def measure(measurer: Measurer, batch: list[Candidate]) -> list[TrialRecord]:
    records = measurer.measure([(candidate, None) for candidate in batch])
    assert [(r.kernel, r.template, render_config(r.config)) for r in records] == [
        (c.kernel.key, c.template.name, render_config(c.config)) for c in batch
    ]
    return records


def untuned(kernel: Kernel, target: Target) -> Candidate:
    template = fitting_templates(kernel, target)[-1]
    return Candidate(kernel, template, template.guess(kernel, target))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_any_number_of_devices_measures_every_candidate(devices: int, farm: Farm) -> None:
    key = next(KEYS)
    target = farm.target(NATIVE, key)
    farm.start_devices(key, devices, NATIVE.cores)
    assert why_not_rpc(target) is None
    batch = candidates(target, 12)
    with open_measurer([batch[0].kernel], target, seed=3) as measurer:
        assert measurer.devices == devices
        records = measure(measurer, batch)
    assert [record.error for record in records] == [None] * 12
    assert all(record.target == target.key and record.seed == 3 for record in records)
    assert 'hardware="key' in target.key
