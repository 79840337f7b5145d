"""What more builders and more devices bring, all on this machine: `python benchmarks/scaling.py [--rounds N]`.

Candidates compiled a second by 1, 2 and 4 processes and by 1, 2 and 4 dask workers; candidates timed a second on 1, 2
and 4 devices of a TVM RPC tracker. The blocks of a row alternate, and what is printed beside the rate is the median of
their ratios. One machine has its cores only: what computes stops gaining there. The last row's devices wait instead of
computing, as devices elsewhere leave this machine alone: it shows what the machinery itself allows.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import distributed
import msgspec
import numpy as np
import onnx
from onnx import helper
from tvm.script import tirx as T  # noqa: N812

from tvmbridge.child import child_command, child_environment
from tvmbridge.device.tracker import count_devices
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import Kernel, lower
from tvmbridge.schedules import fitting_templates
from tvmbridge.targets import RpcMeasure, Target, parse_preset
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.measure.building import Builder, Built, LocalBuilder
from tvmbridge.tuning.measure.cluster import ClusterBuilder
from tvmbridge.tuning.measure.forks import ForkServer, describe
from tvmbridge.tuning.measure.rpc import RpcTimer
from tvmbridge.tuning.tasks import Candidate, find_tasks

COUNTS = (1, 2, 4)
CANDIDATES = 16
Calls = queue.SimpleQueue


@T.prim_func(s_tir=True)
def waits(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    """A kernel of 20 ms that leaves the CPU alone."""
    with T.sblock("waits"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "usleep", 20000))


def main() -> int:
    """Measure every row and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each count (default: %(default)s)")
    rounds = parser.parse_args().rounds
    target = msgspec.structs.replace(parse_preset("native"), cores=1)  # devices that share a machine share its cores
    matmul = matmul_candidates(target)
    kernel = Kernel("waits", waits, "waits", frozenset(), 1)
    template = fitting_templates(kernel, target)[-1]
    waiting = [Candidate(kernel, template, template.guess(kernel, target))] * CANDIDATES
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; candidates a second, and beside 1")
    with contextlib.ExitStack() as open_:
        calls: Calls = queue.SimpleQueue()
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        opening = describe([matmul[0].kernel, kernel], target)
        forks = ForkServer(opening, threads=target.cores)
        forks.start()
        open_.callback(forks.stop)
        local = LocalBuilder(target, forks, calls.put)
        builders = {count: open_.enter_context(on_cluster(count, opening, calls)) for count in COUNTS}
        timers = open_.enter_context(on_devices(target, forks, calls))
        libraries = [build_all(local, candidates, folder, calls) for candidates in (matmul, waiting)]
        rows: dict[str, Callable[[int], object]] = {
            "built by processes": lambda n: build_all(local, matmul, folder, calls, slots=n),
            "built by dask workers": lambda n: build_all(builders[n], matmul, folder, calls),
            "timed on devices that compute": lambda n: time_all(timers[n], libraries[0], calls),
            "timed on devices that wait": lambda n: time_all(timers[n], libraries[1], calls),
        }
        for name, block in rows.items():
            rates = alternate(block, rounds)
            ratios = {n: statistics.median(r / one for r, one in zip(rates[n], rates[1], strict=True)) for n in COUNTS}
            shown = (f"{n}: {statistics.median(rates[n]):5.2f}/s {ratios[n]:4.2f}x" for n in COUNTS)
            print(f"{name:30} " + "   ".join(shown), flush=True)
    return 0


def matmul_candidates(target: Target) -> list[Candidate]:
    """Configs of one matmul with weights and a bias."""
    weights = np.random.default_rng(0).normal(size=(256, 256)).astype("float32")
    tensors = [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(weights[0], "b")]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (64, 256)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], "matmul", [x], [y], tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "matmul.onnx")
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
        lowered = lower(import_onnx(path), target)
    (task,) = find_tasks(lowered, target, LogRecords())
    return list(task.untried.values())[:CANDIDATES]


def alternate(block: Callable[[int], object], rounds: int) -> dict[int, list[float]]:
    """Candidates a second of each count, one figure a round, after one that counts for nothing."""
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number, count in itertools.product(range(rounds + 1), COUNTS):
        started = time.perf_counter()
        block(count)
        if number:
            rates[count].append(CANDIDATES / (time.perf_counter() - started))
    return rates


def build_all(
    builder: Builder, candidates: Sequence[Candidate], folder: Path, calls: Calls, slots: int | None = None
) -> list[Built]:
    """Compile candidates, `slots` at a time."""
    built: list[Built] = []
    waiting = list(enumerate(candidates))
    building = 0
    while len(built) < len(candidates):
        while waiting and building < (slots or builder.slots):
            index, candidate = waiting.pop()
            building += 1
            builder.build(candidate, folder / f"{candidate.kernel.name}{index}.so", built.append)
        before = len(built)
        calls.get()()
        building -= len(built) - before
    assert all(each.error is None for each in built)
    return built


def time_all(timer: RpcTimer, libraries: Sequence[Built], calls: Calls) -> None:
    """Time libraries on all of the timer's devices."""
    timed: list = []
    for library in libraries:
        timer.time(library, None, timed.append)
    while len(timed) < len(libraries):
        calls.get()()
    assert all(each.error is None for each in timed), timed


@contextlib.contextmanager
def on_cluster(workers: int, opening: dict, calls: Calls) -> Iterator[ClusterBuilder]:
    """A builder on a dask cluster of so many workers on this machine."""
    with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster:
        builder = ClusterBuilder(cluster.scheduler_address, opening, calls.put)
        builder.start()
        try:
            yield builder
        finally:
            builder.stop()


@contextlib.contextmanager
def on_devices(target: Target, forks: ForkServer, calls: Calls) -> Iterator[dict[int, RpcTimer]]:
    """Timers on 1, 2 and 4 devices on this machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    tracker = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
    commands = [[*tracker, "--port", str(port), "--port-end", str(port + 1)]]
    for count in COUNTS:
        place = ["--tracker", f"127.0.0.1:{port}", "--key", f"devices{count}", "--host", "127.0.0.1", "--threads", "1"]
        commands += [child_command("tvmbridge.device.server", *place)] * count
    with contextlib.ExitStack() as running:
        for command in commands:
            process = running.enter_context(subprocess.Popen(command, env=child_environment(), **quiet))  # type: ignore[call-overload]
            running.callback(os.killpg, process.pid, signal.SIGKILL)  # the tracker is a child of the tracker's program
        timers = {}
        for count in COUNTS:
            place = RpcMeasure(tracker=f"127.0.0.1:{port}", key=f"devices{count}")
            while not registered(place, count):
                time.sleep(0.5)
            timers[count] = RpcTimer(msgspec.structs.replace(target, measure=place), forks, calls.put)
            timers[count].start()
        yield timers


def registered(place: RpcMeasure, devices: int) -> bool:
    """Whether the tracker knows so many devices under the key."""
    try:
        return count_devices(place) == devices
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
