"""Does the steps of the GPU benchmark as long as there is time, and keeps the rows."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from comparison.build import build_untuned, write_network
from comparison.figures import ONNXRUNTIME_CUDA, OURS, TUNED
from comparison.gpu_figures import LIMITS, PEER_LIMITS, WITH_GRAPHS, GpuRow
from comparison.gpu_plan import Case, Precision, Step
from comparison.gpu_programs import peers_of, worker_of
from comparison.gpu_turns import ANSWER_TIMEOUT_S, Worker, WorkerError, round_medians, time_programs_in_turns
from comparison.half_model import half_model
from comparison.plain_graph import write_plain_graph
from comparison.tuning import tune_network
from tvmbridge.bundle import open_bundle
from tvmbridge.gpus import read_gpu_states
from tvmbridge.host import run_command
from tvmbridge.signature import ModelSignature
from tvmbridge.verify import ReferenceSession, compare_outputs, random_inputs

TARGET, GRAPHS_TARGET = "gpu", "gpu-graphs"
# A search that is shorter finds next to nothing, and its final check alone takes most of it.
_SHORTEST_TUNING_S = 20.0
# What a build and a measurement after the search take, at most: kept free where the time is limited.
_AFTER_TUNING_S = 90.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the steps are done.

    folder: where models, bundles and logs go. architecture: of the GPU, "sm_90". peer_python: the interpreter with
    torch, and peer_path, its PYTHONPATH. peer_device: where torch computes. seconds, rounds: of timing a row. minutes:
    of tuning one, with an engine of `tvmbridge tune`. jobs: builds at a time. deadline: the moment of time.monotonic()
    at which to be done.
    """

    folder: Path
    architecture: str
    peer_python: str
    peer_path: str
    peer_device: str
    seconds: float
    rounds: int
    minutes: float
    engine: str
    jobs: int
    deadline: float

    @property
    def left_s(self) -> float:
        """The time that is left."""
        return self.deadline - time.monotonic()


class OutOfTimeError(Exception):
    """The time was up before a step was done."""


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a network at a batch is fed with, in a file, and what ONNX Runtime gives for it."""

    signature: ModelSignature
    feeds: Path
    expected: dict[str, np.ndarray]


class GpuBenchmark:
    """The rows so far; a context manager, which ends the processes that it has started."""

    def __init__(self, settings: Settings, on_row: Callable[[GpuRow], None], say: Callable[[str], None]) -> None:
        self.rows: dict[Case, GpuRow] = {}
        self._settings = settings
        self._on_row = on_row
        self._say = say
        self._peers: dict[str, Worker] = {}
        self._doubtful: set[str] = set()
        self._data: dict[tuple[str, int], _Data] = {}

    def __enter__(self) -> GpuBenchmark:
        """The benchmark itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what it has started."""
        for worker in self._peers.values():
            worker.kill()

    def do(self, steps: Sequence[Step]) -> list[Step]:
        """Do the steps in their order; returns those for which no time was left."""
        left_out: list[Step] = []
        for kind, group in itertools.groupby(steps, lambda step: step.kind):
            if kind == "build":
                left_out += self._build_all(list(group))
                continue
            for step in group:
                row = self.rows.get(step.case)
                if self._settings.left_s <= 0 or row is None:
                    left_out.append(step)
                elif row.problem is None:
                    self._say(f"{step.kind}: {step.case.label}")
                    try:
                        self._keep(self._tune(row) if kind == "tune" else self._measure(row, step))
                    except OutOfTimeError:
                        left_out.append(step)
        return left_out

    def _keep(self, row: GpuRow) -> None:
        self.rows[row.case] = row
        self._on_row(row)

    def _build_all(self, steps: Sequence[Step]) -> list[Step]:
        """Build and verify, several at a time: nothing is timed meanwhile."""
        left_out = []
        for network, batch in dict.fromkeys((step.case.network, step.case.batch) for step in steps):
            if not self._model(network, batch).exists() and self._settings.left_s > 0:
                write_network(network, batch, self._settings.folder)
        with concurrent.futures.ThreadPoolExecutor(self._settings.jobs) as pool:
            begun = {pool.submit(self._build, step.case): step for step in steps}
            for done in concurrent.futures.as_completed(begun):
                try:
                    row = done.result()
                except OutOfTimeError:
                    left_out.append(begun[done])
                    continue
                self._say(f"built: {row.case.label}: {row.problem or f'error {row.errors[OURS]:.1e}'}")
                self._keep(row)
        return left_out

    def _model(self, network: str, batch: int) -> Path:
        return self._settings.folder / f"{network}_b{batch}.onnx"

    def _bundle(self, case: Case, program: str) -> Path:
        folder = self._settings.folder / f"{case.network}_b{case.batch}_{case.precision}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{program}.tvmb"

    def _log(self, case: Case) -> Path:
        return self._bundle(case, TUNED).with_suffix(".tune.jsonl")

    def _target(self, precision: Precision, target: str = TARGET) -> list[str]:
        """The options that name the target; its file says that this machine measures."""
        file = self._settings.folder / f"{precision}.yaml"
        preset = f"cuda:{self._settings.architecture}" + (",float16" if precision == "float16" else "")
        text = f'version: 1\ntargets:\n  {TARGET}: {{preset: "{preset}", measure: local}}\n'
        text += f'  {GRAPHS_TARGET}: {{preset: "{preset}", measure: local, cuda_graphs: true}}\n'
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        return ["--targets", str(file), "--target", target]

    def _build(self, case: Case) -> GpuRow:
        if self._settings.left_s <= 0:
            raise OutOfTimeError
        options = [*self._target(case.precision), "--accept-inaccurate", TARGET]
        model, bundle = self._model(case.network, case.batch), self._bundle(case, OURS)
        build = build_untuned(model, bundle, *options, timeout_s=self._settings.left_s)
        row = GpuRow(case, build_seconds=build.seconds, problem=build.problem)
        if build.problem is not None:
            if self._settings.left_s <= 0:
                raise OutOfTimeError
            return row
        if (accuracy := build.report["accuracy"]) is None:
            return dataclasses.replace(row, problem=f"not verified: {build.report['unverified_because']}")
        error = accuracy["max_relative"]
        wrong = f"wrong: {error:.1e} relative error" if error > LIMITS[case.precision] else None
        return dataclasses.replace(row, errors={OURS: error}, problem=wrong)

    def _tune(self, row: GpuRow) -> GpuRow:
        """Tune it, and measure what has come of it beside all peers."""
        seconds = min(self._settings.minutes * 60, self._settings.left_s - _AFTER_TUNING_S)
        if seconds < min(_SHORTEST_TUNING_S, self._settings.minutes * 60):
            raise OutOfTimeError
        case = row.case
        bundle = self._bundle(case, TUNED)
        tuned = tune_network(
            self._model(case.network, case.batch),
            self._log(case),
            bundle,
            *("--minutes", f"{seconds / 60:.3f}", "--engine", self._settings.engine),
            target=self._target(case.precision),
            timeout_s=self._settings.left_s,
        )
        if self._settings.left_s <= 0:
            raise OutOfTimeError
        described = {**dataclasses.asdict(tuned), "bundle": bundle.name, "trials_per_second": tuned.trials_per_second}
        row = dataclasses.replace(row, tuning=described)
        if tuned.problem is not None:
            return dataclasses.replace(row, absent={**row.absent, TUNED: tuned.problem})
        self._keep(row)  # what tuning found is kept, also where there is no time to measure it
        return self._measure(row, Step("tune", case))

    def _build_with_graphs(self, case: Case, ours: str) -> str | None:
        """Build what `ours` is with CUDA graphs, by the same records; why not, or None."""
        options = [*self._target(case.precision, GRAPHS_TARGET), "--accept-inaccurate", GRAPHS_TARGET]
        options += ["--log", str(self._log(case))] if ours == TUNED else []
        model, bundle = self._model(case.network, case.batch), self._bundle(case, WITH_GRAPHS[ours])
        return build_untuned(model, bundle, *options, timeout_s=self._settings.left_s).problem

    def _measure(self, row: GpuRow, step: Step) -> GpuRow:
        """Start the programs, compare their outputs, and time in turns those that are right."""
        case = row.case
        ours = [OURS, *([TUNED] if step.kind == "tune" else [])]
        errors, absent, started = dict(row.errors), {}, {}
        running: dict[str, Worker] = {}
        with_graphs = []
        if step.kind != "speed":
            if (why := self._build_with_graphs(case, ours[-1])) is None:
                with_graphs.append(WITH_GRAPHS[ours[-1]])
            elif self._settings.left_s <= 0:
                raise OutOfTimeError
            else:
                absent[WITH_GRAPHS[ours[-1]]] = why
        data = self._data_of(case)
        with Worker() as own:
            for program in (*ours, *with_graphs, *peers_of(step.kind, case.precision)):
                worker = own if program in (*ours, *with_graphs) else self._peer(program)
                answer = self._start(program, worker, case, data)
                why = answer.get("absent") or (f"failed: {answer['error']}" if "error" in answer else None)
                if why is None:
                    started[program] = answer["seconds"]
                    why, errors[program] = self._hold_against(program, case, data, errors.get(program, 0.0))
                if why is None:
                    running[program] = worker
                elif program in ours:
                    return dataclasses.replace(row, errors=errors, problem=f"{program}: {why}")
                else:
                    absent[program] = why
                    self._doubtful.update([worker_of(program)] if "error" in answer else [])
            states = [read_gpu_states(run_command)]
            blocks, failed = time_programs_in_turns(
                running, seconds=self._settings.seconds, rounds=self._settings.rounds, until=self._settings.deadline
            )
            states.append(read_gpu_states(run_command))
        self._stop_peers(failed)
        broken = next((f"{program}: {failed[program]}" for program in ours if program in failed), None)
        return dataclasses.replace(
            row,
            problem=broken,
            errors=errors,
            rounds_us={program: round_medians(kept) for program, kept in blocks.items()},
            absent={**absent, **failed},
            started_seconds=started,
            gpu_states=[dataclasses.asdict(each[0]) for each in states if each],
        )

    def _data_of(self, case: Case) -> _Data:
        key = (case.network, case.batch)
        if key not in self._data:
            model = self._model(*key)
            with open_bundle(self._bundle(case, OURS)) as bundle:
                signature = bundle.manifest.signature
            feeds = random_inputs(model, signature, seed=1)
            expected = ReferenceSession(model).run(feeds)
            path = model.with_suffix(".feeds.npz")
            np.savez(path, **{f"a{index}": array for index, array in enumerate(feeds.values())})
            write_plain_graph(onnx.load(model), model.with_suffix(".graph"))
            self._data[key] = _Data(signature, path, expected)
        return self._data[key]

    def _start(self, program: str, worker: Worker, case: Case, data: _Data) -> dict[str, Any]:
        model = self._model(case.network, case.batch)
        half = model.with_suffix(".half.onnx")
        if program == ONNXRUNTIME_CUDA and case.precision == "float16" and not half.exists():
            onnx.save(half_model(onnx.load(model)), half)
        request = {
            "program": program,
            "bundle": str(self._bundle(case, program)),
            "graph": str(model.with_suffix(".graph")),
            "model": str(model),
            "half_model": str(half),
            "half": case.precision == "float16",
            "device": self._settings.peer_device,
            "feeds": str(data.feeds),
            "inputs": [spec.name for spec in data.signature.inputs],
            "outputs": [spec.name for spec in data.signature.outputs],
            "results": str(self._results(program)),
        }
        limit_s = min(ANSWER_TIMEOUT_S, self._settings.left_s)
        try:
            return worker.ask("start", timeout_s=limit_s, **request)
        except WorkerError as exc:
            if self._settings.left_s <= 0:
                raise OutOfTimeError from exc
            return {"error": str(exc)}

    def _results(self, program: str) -> Path:
        return self._settings.folder / f"results.{program}.npz"

    def _hold_against(self, program: str, case: Case, data: _Data, known: float) -> tuple[str | None, float]:
        """What is wrong with the program's outputs, or None; and its largest error, that of the build counted in."""
        with np.load(self._results(program)) as arrays:
            got = {spec.name: arrays[f"a{index}"] for index, spec in enumerate(data.signature.outputs)}
        worst = compare_outputs(data.expected, got, data.signature).worst
        error = max(worst.max_relative, known) if np.isfinite(worst.max_relative) else known
        limit = (LIMITS if worker_of(program) == OURS else PEER_LIMITS)[case.precision]
        if worst.mismatch is None and error <= limit:
            return None, error
        return f"wrong: output {worst.name}: {worst.mismatch or f'{error:.1e} relative error'}", error

    def _peer(self, program: str) -> Worker:
        """The process of a peer, which lives on: importing torch takes seconds."""
        name = worker_of(program)
        worker = self._peers.get(name)
        if worker is None or not worker.alive:
            worker = self._peers[name] = Worker(self._settings.peer_python, self._settings.peer_path)
        return worker

    def _stop_peers(self, failed: Iterable[str]) -> None:
        """Let the peers give back what they hold; where one has failed, its process may be of no more use."""
        self._doubtful.update(worker_of(program) for program in failed)
        for name, worker in list(self._peers.items()):
            try:
                if name in self._doubtful:
                    raise WorkerError
                worker.ask("stop", timeout_s=60.0)
            except WorkerError:
                worker.kill()
                del self._peers[name]
        self._doubtful.clear()
