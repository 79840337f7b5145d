"""build(): the only file that knows the order of the stages. One outcome per target, one bundle of all that worked."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmbridge.bundle import BuiltVariant, ModelFacts, describe_values, write_bundle
from tvmbridge.codegen import KernelPlan, build_variant
from tvmbridge.codegen.cuda import require_nvcc
from tvmbridge.codegen.link import find_linker
from tvmbridge.codegen.tvm_runtime import runtime_folder
from tvmbridge.errors import CompileError, TargetError, TvmBridgeError, is_interrupt, reason
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering import lower
from tvmbridge.profiling import KernelShare, share_time
from tvmbridge.targets import Target, parse_preset
from tvmbridge.tuning.budget import Budget
from tvmbridge.tuning.log import read_logs, render_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.progress import TuneProgress
from tvmbridge.tuning.tune import TuneOptions, why_not_tuned
from tvmbridge.tuning.tune import tune as tune_kernels
from tvmbridge.verify.variant import VariantCheck, require_working, verify_variant

if TYPE_CHECKING:
    import numpy as np


LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TargetOutcome:
    """What became of one target.

    error: why there is no variant; None where there is one.
    check: how it did against ONNX Runtime.
    untuned_because: why nothing was tuned although there was a budget and a log.
    """

    target: Target
    seconds: float
    variant: BuiltVariant | None = None
    error: TvmBridgeError | None = None
    kernels: tuple[KernelPlan, ...] = ()
    check: VariantCheck | None = None
    tuning: TuneProgress | None = None
    untuned_because: str | None = None

    @property
    def shares(self) -> tuple[KernelShare, ...]:
        """What each kernel takes of the variant's time, the most expensive first."""
        return share_time(self.kernels, self.check.kernel_us if self.check is not None else {})


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did. output: the bundle; None where no target could be built, and nothing was written."""

    model: ModelFacts
    output: Path | None
    outcomes: tuple[TargetOutcome, ...]

    @property
    def failed(self) -> tuple[TargetOutcome, ...]:
        """The targets without a variant."""
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)


@dataclasses.dataclass(frozen=True)
class BuildEvent:
    """A stage begins for a target: fetch, lower, tune, compile, verify, done; then write, for the bundle (target "").

    tuning: where it stands, while it tunes. outcome: what became of the target, when it is done. fetched: bytes so far
    and in all, while TVM's runtime for another machine is downloaded.
    """

    target: str
    stage: str
    tuning: TuneProgress | None = None
    outcome: TargetOutcome | None = None
    fetched: tuple[int, int] | None = None


def build(
    model: ImportedModel,
    targets: Sequence[Target | str],
    output: str | os.PathLike[str],
    *,
    tune: bool = True,
    budget: Budget | None = None,
    log: str | os.PathLike[str] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    tolerance: float | None = None,
    accept_inaccurate: Sequence[str] = (),
    tuning: TuneOptions = TuneOptions(),
    seed: int = 0,
    seconds: float = 1.0,
    threads: int | None = None,
    on_event: Callable[[BuildEvent], None] | None = None,
) -> BuildReport:
    """Build one bundle with a variant for each target: lower, tune, compile, verify, write.

    targets: Target values, or presets by name ("native", "arm:cortex-a72").
    tune: whether to measure at all; records in `log` are used in any case. budget: what each target that is measured
    here may spend; None: what the target itself declares, and no tuning where it declares nothing. log: the tuning log,
    read and appended to; None: no tuning. tuning: how it goes about it, and further logs to read.
    inputs: user data to verify with besides random data.
    tolerance: of max|a-b| / max|reference| against ONNX Runtime; None: what the outputs' dtypes and the target's
    precision allow.
    accept_inaccurate: names of targets that are written even if they miss it.
    seconds, threads: how long each variant is timed beside ONNX Runtime, and on how many threads; None: its cores.

    A target that fails is an outcome with an error; the others are built. Nothing is written where all fail. Raises
    TargetError where the targets cannot go into one bundle, OutputError where the bundle cannot be written, LogError
    where the log cannot be used.
    """
    chosen = [parse_preset(target) if isinstance(target, str) else target for target in targets]
    _refuse_arguments(chosen, accept_inaccurate)
    _read_records(log, tuning)  # a log that cannot be used is said now, not after the first target's work
    accepted, say = frozenset(accept_inaccurate), on_event or _ignore
    work = _Work(model, tune, budget, log, tuning, inputs, tolerance, accepted, seed, seconds, threads, say)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="tvmbridge-build-") as folder:
        for target in chosen:
            started = time.monotonic()
            try:
                outcome = _build_target(work, target, Path(folder))
            except TvmBridgeError as exc:
                outcome = TargetOutcome(target, 0.0, error=exc)
            except Exception as exc:  # whatever goes wrong for one target, the others are built
                if is_interrupt(exc):
                    raise KeyboardInterrupt from exc
                LOGGER.debug("%s failed", target.name, exc_info=True)
                unexpected = CompileError(f"unexpected {reason(exc)}", hint="please report it, with the output of -v")
                outcome = TargetOutcome(target, 0.0, error=unexpected)
            outcomes.append(dataclasses.replace(outcome, seconds=time.monotonic() - started))
            work.say(BuildEvent(target.name, "done", outcome=outcomes[-1]))
        facts = ModelFacts(model.name, model.sha256, model.opset, describe_values(model.values))
        variants = [outcome.variant for outcome in outcomes if outcome.variant is not None]
        if variants:
            work.say(BuildEvent("", "write"))
            used = [plan.record for outcome in outcomes for plan in outcome.kernels if plan.record is not None]
            write_bundle(
                output,
                model=facts,
                signature=model.signature,
                variants=variants,
                log=render_log(used) if used else None,
                tools=_tool_versions(),
            )
    return BuildReport(facts, Path(output) if variants else None, tuple(outcomes))


def _tool_versions() -> dict[str, str]:
    """The packages that decide what a build makes; without those that are here under another name, as nightlies are."""
    found = {}
    for name in ("apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "onnxscript"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _refuse_arguments(targets: Sequence[Target], accept_inaccurate: Sequence[str]) -> None:
    names = [target.name for target in targets]
    if not names:
        raise TargetError("there are no targets to build for", hint='for this machine: parse_preset("native")')
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TargetError(f"two targets are called {', '.join(twice)}", hint="a bundle has one variant of a name")
    unknown = sorted(set(accept_inaccurate) - set(names))
    if unknown:
        raise TargetError(f"no target is called {', '.join(unknown)}", hint=f"the targets are {', '.join(names)}")


def _read_records(log: str | os.PathLike[str] | None, options: TuneOptions) -> LogRecords | None:
    """What the logs say; None where there is none."""
    paths = [*([log] if log is not None else []), *options.also]
    return read_logs(paths) if paths else None


def _ignore(_event: BuildEvent) -> None:
    """Nobody listens."""


@dataclasses.dataclass(frozen=True)
class _Work:
    """What `build` was asked for, the same for every target."""

    model: ImportedModel
    tune: bool
    budget: Budget | None
    log: str | os.PathLike[str] | None
    options: TuneOptions
    inputs: Mapping[str, np.ndarray] | None
    tolerance: float | None
    accept_inaccurate: frozenset[str]
    seed: int
    seconds: float
    threads: int | None
    say: Callable[[BuildEvent], None]


def _build_target(work: _Work, target: Target, folder: Path) -> TargetOutcome:
    def stage(name: str) -> None:
        work.say(BuildEvent(target.name, name))

    # Before any work is done for a target that cannot be linked, or would have no runtime.
    find_linker(target.machine)
    runtime_folder(target.machine, folder, lambda *fetched: work.say(BuildEvent(target.name, "fetch", fetched=fetched)))
    if target.kind == "cuda":
        require_nvcc()
    stage("lower")
    lowered = lower(work.model, target)
    tuning, untuned_because = None, None
    budget = (work.budget or target.budget) if work.tune else None
    if budget is not None and work.log is not None:
        untuned_because = why_not_tuned(target)
        if untuned_because is None:
            stage("tune")
            tuning = tune_kernels(
                work.model,
                target,
                budget=budget,
                log=work.log,
                seed=work.seed,
                options=work.options,
                lowered=lowered,
                on_progress=lambda progress: work.say(BuildEvent(target.name, "tune", progress)),
            )
    stage("compile")
    records = _read_records(work.log, work.options)
    variant, kernels = build_variant(lowered, target, records, folder)
    check = verify_variant(
        work.model,
        variant,
        work.inputs,
        tolerance=work.tolerance,
        seed=work.seed,
        seconds=work.seconds,
        threads=work.threads,
        on_run=lambda: stage("verify"),
    )
    require_working(check, accept_inaccurate=target.name in work.accept_inaccurate)
    variant = dataclasses.replace(
        variant,
        accuracy=check.accuracy,
        unverified_because=check.unverified_because or (None if check.accuracy else check.problem),
        latency_us=check.latency.median_us if check.latency else None,
        emulated=check.latency is not None and check.latency.emulated,
    )
    return TargetOutcome(target, 0.0, variant, None, kernels, check, tuning, untuned_because)
