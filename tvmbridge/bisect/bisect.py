"""bisect_model(): compare a compiled model with ONNX Runtime, and find the first operator where the two part."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike

from tvmbridge.bisect.check import Check, Run, compile_and_run
from tvmbridge.bisect.cut import Graph, Part, read_graph
from tvmbridge.bisect.search import Finding, Search
from tvmbridge.bisect.values import ReferenceValues
from tvmbridge.isolate import Limits
from tvmbridge.signature import ModelSignature
from tvmbridge.targets import Target
from tvmbridge.verify.compare import default_tolerance
from tvmbridge.verify.inputs import random_samples, read_inputs

RUN_LIMITS = Limits(timeout_s=900.0)  # of compiling and running one part of a model
_RANDOM_SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class BisectReport:
    """What a search has found. whole: how the whole model did. finding: None where it is right."""

    whole: Check
    finding: Finding | None


def bisect_model(
    source: str | os.PathLike[str] | onnx.ModelProto,
    target: Target,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    values: Mapping[str, ArrayLike] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    log: Path | None = None,
    limits: Limits = RUN_LIMITS,
    run: Run | None = None,
    on_check: Callable[[Part, Check], None] = lambda _part, _check: None,
) -> BisectReport:
    """Build the model for a target of this machine, compare, and search what differs or fails.

    inputs: an .npz file to compare on; None: random data of `seed` and the next. log: tuning records that decide the
    schedules. tolerance: of max|a-b| / max|reference| of every tensor; None: what its dtype and the target's
    precision allow. limits: of one build, in a process of its own. run: what computes a model's outputs; None:
    compiling it.
    Raises ModelError children where the model cannot be read or ONNX Runtime does not take it.
    """
    graph = read_graph(source, shapes or {}, dims or {}, values or {})
    if tolerance is None and target.precision == "float16":
        tolerance = default_tolerance(ModelSignature((), ()), target.precision)
    compiled: Run = run or functools.partial(compile_and_run, target=target, log=log, limits=limits)
    report: BisectReport | None = None
    for feeds in _samples(graph, inputs, seed):
        with tempfile.TemporaryDirectory(prefix="tvmbridge-bisect-") as folder:
            reference = ReferenceValues(graph, feeds, Path(folder))
            search = Search(graph, reference, tolerance=tolerance, run=compiled, on_check=on_check)
            whole = search.check_whole()
            report = BisectReport(whole, search.find(whole) if whole.is_bad else None)
        if report.finding is not None:
            break
    assert report is not None
    return report


def _samples(graph: Graph, inputs: str | os.PathLike[str] | None, seed: int) -> list[dict[str, np.ndarray]]:
    signature = ModelSignature(graph.inputs, ())
    if inputs is not None:
        return [read_inputs(inputs, signature)]
    return random_samples(graph.model, signature, seed=seed, count=_RANDOM_SAMPLES)
