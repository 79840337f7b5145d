"""Compiling on a dask cluster: any number of workers, whatever becomes of them; timing here or over RPC."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Iterator

import distributed
import psutil
import pytest
from kernels import lower_function, runnable_targets
from rpc_farm import end, free_port, running_farm, wait_for
from test_measure_rpc import aborts, candidates, hangs, measure, untuned

from tvmbridge.errors import TuningError
from tvmbridge.tuning.measure import cluster as cluster_module
from tvmbridge.tuning.measure import here
from tvmbridge.tuning.measure.opening import open_measurer
from tvmbridge.tuning.tasks import Candidate

pytestmark = [pytest.mark.compiler, pytest.mark.slow, pytest.mark.timeout(180)]

NATIVE = runnable_targets()[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


def has_built(dask_worker: distributed.Worker) -> bool:
    return any(getattr(plugin, "_forks", None) is not None for plugin in dask_worker.plugins.values())


def worker_pids(cluster: distributed.LocalCluster) -> list[int]:
    with distributed.Client(cluster, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


def scale(cluster: distributed.LocalCluster, workers: int) -> None:
    cluster.scale(workers)
    wait_for(lambda: len(worker_pids(cluster)) == workers)


def test_any_number_of_workers_builds_every_candidate_and_all_of_them_build(cluster: distributed.LocalCluster) -> None:
    batch = candidates(NATIVE, 8)
    for workers in (1, 2, 4):
        scale(cluster, workers)
        with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
            records = measure(measurer, batch)
            with distributed.Client(cluster, set_as_default=False) as client:
                assert list(client.run(has_built).values()) == [True] * workers
        assert [record.error for record in records] == [None] * 8
        assert all(record.target == NATIVE.key for record in records)


def test_a_worker_that_dies_in_the_middle_loses_no_candidate(cluster: distributed.LocalCluster) -> None:
    scale(cluster, 2)
    batch = candidates(NATIVE, 8)
    with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
        victim = psutil.Process(worker_pids(cluster)[0])
        threading.Timer(0.5, end, [victim]).start()
        records = measure(measurer, batch)
        assert not victim.is_running()
    assert [record.error for record in records] == [None] * 8


def test_a_worker_that_leaves_in_the_middle_fails_no_candidate(cluster: distributed.LocalCluster) -> None:
    scale(cluster, 2)
    batch = candidates(NATIVE, 8)
    with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
        threading.Timer(0.5, cluster.scale, [1]).start()
        records = measure(measurer, batch)
        wait_for(lambda: len(worker_pids(cluster)) == 1)
    assert [record.error for record in records] == [None] * 8


def test_a_candidate_that_misbehaves_costs_itself_only(
    cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "RUN_TIMEOUT_S", 6.0)
    good, *_ = candidates(NATIVE, 1)
    odd = Candidate(good.kernel, good.template, {"nonsense": 1})
    bad = [untuned(lower_function(function, name), NATIVE) for name, function in {"a": aborts, "h": hangs}.items()]
    kernels = [good.kernel, *(candidate.kernel for candidate in bad)]
    with open_measurer(kernels, NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
        refused, aborted, hung, fine = measure(measurer, [odd, *bad, good])
    assert refused.error is not None and fine.error is None
    assert aborted.error == "crashed with SIGABRT while running"
    assert hung.error == "running took over 6 s"


def test_a_build_process_that_dies_on_a_worker_is_started_again(cluster: distributed.LocalCluster) -> None:
    batch = candidates(NATIVE, 8)
    with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
        measure(measurer, batch)
        for worker in map(psutil.Process, worker_pids(cluster)):
            for process in worker.children():
                if "tvmbridge.tuning.measure.fork_server" in process.cmdline():
                    process.kill()
        records = measure(measurer, batch)
    assert [record.error for record in records] == [None] * 8


def test_what_is_built_on_a_cluster_is_timed_over_rpc_as_well(cluster: distributed.LocalCluster) -> None:
    with running_farm() as farm:
        target = farm.target(NATIVE, "lent")
        farm.start_devices("lent", 1, NATIVE.cores)
        batch = candidates(target, 4)
        with open_measurer([batch[0].kernel], target, seed=3, cluster=cluster.scheduler_address) as measurer:
            records = measure(measurer, batch)
    assert [record.error for record in records] == [None] * 4
    assert [record.target for record in records] == [target.key] * 4


def test_a_worker_with_another_version_is_refused_by_name(
    cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "99.0")
    (candidate,) = candidates(NATIVE, 1)
    measurer = open_measurer([candidate.kernel], NATIVE, seed=3, cluster=cluster.scheduler_address)
    with pytest.raises(TuningError, match=r"worker tcp://\S+ has tvmbridge .* has tvmbridge 99\.0 and apache-tvm"):
        measurer.__enter__()


def test_a_worker_that_joins_later_with_another_version_builds_nothing(
    cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "99.0")
    monkeypatch.setattr(cluster_module, "_make_census", lambda: lambda: versions)
    versions = {"tvmbridge": "99.0", "apache-tvm": importlib.metadata.version("apache-tvm")}
    (candidate,) = candidates(NATIVE, 1)
    refusal = pytest.raises(TuningError, match=r"worker tcp://\S+ cannot build candidates: it has tvmbridge")
    with open_measurer([candidate.kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer, refusal:
        measure(measurer, [candidate])


def test_no_worker_left_is_an_error_that_says_how_to_go_on(
    cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "NO_WORKER_S", 3.0)
    batch = candidates(NATIVE, 8)
    with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address) as measurer:
        threading.Timer(0.3, cluster.scale, [0]).start()
        with pytest.raises(
            TuningError, match="has had no worker for 3 s\n  hint: start workers with `dask worker tcp:"
        ):
            for _ in range(100):
                measure(measurer, batch)
    with pytest.raises(TuningError, match="has no workers"):
        open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=cluster.scheduler_address).__enter__()


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_is_lost_in_the_middle_is_an_error(
    with_signal: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "NO_WORKER_S", 3.0)
    monkeypatch.setattr(cluster_module, "_CLOSE_TIMEOUT_S", 1.0)
    address = f"tcp://127.0.0.1:{free_port()}"
    batch = candidates(NATIVE, 8)
    # As docs/distributed-tuning.md says.
    dask = [sys.executable, "-m", "dask"]
    scheduler = psutil.Popen([*dask, "scheduler", "--host", address, "--no-dashboard"])
    worker = psutil.Popen([*dask, "worker", address, "--nworkers", "1", "--nthreads", "1", "--no-dashboard"])
    try:
        with distributed.Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        with open_measurer([batch[0].kernel], NATIVE, seed=3, cluster=address) as measurer:
            threading.Timer(0.5, scheduler.send_signal, [with_signal]).start()
            with pytest.raises(TuningError, match=f"the dask scheduler at {address} (is gone|has had no worker)"):
                for _ in range(100):
                    measure(measurer, batch)
    finally:
        end(worker)
        end(scheduler)


def test_no_scheduler_is_an_error_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_TIMEOUT_S", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    (candidate,) = candidates(NATIVE, 1)
    for given in (address, "nonsense"):
        with pytest.raises(TuningError, match=f"no dask scheduler answers at {given} "):
            open_measurer([candidate.kernel], NATIVE, seed=3, cluster=given).__enter__()


def test_without_dask_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    (candidate,) = candidates(NATIVE, 1)
    with pytest.raises(TuningError, match=r"needs dask(.|\n)*hint: pip install 'tvmbridge\[cluster\]'"):
        open_measurer([candidate.kernel], NATIVE, seed=3, cluster="tcp://127.0.0.1:1").__enter__()
