"""A model built for CUDA and run in this process, which sees the emulated device, beside ONNX Runtime."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.runtime import load
from tvmbridge.targets import parse_preset
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.verify.compare import Comparison, compare_outputs, merge_comparisons
from tvmbridge.verify.inputs import random_samples
from tvmbridge.verify.reference import ReferenceSession


@dataclasses.dataclass(frozen=True)
class Compared:
    """A comparison; which template made each kernel; how long building took and the runs.

    digest: of the bits of all outputs.
    """

    comparison: Comparison
    digest: str
    kernels: Mapping[str, str]
    build_s: float
    run_s: tuple[float, ...]


def compare_model(
    path: Path, target_name: str, *, dims: Mapping[str, int], records: LogRecords | None = None, samples: int = 2
) -> Compared:
    """Build for a CUDA preset, load the bundle and run it on random inputs: `samples` times, in one session."""
    model = import_onnx(path, dims=dict(dims))
    target = parse_preset(target_name)
    with tempfile.TemporaryDirectory(prefix="cuda-emulation-") as name:
        started = time.perf_counter()
        variant, plans = build_variant(lower(model, target), target, records, Path(name))
        variant = dataclasses.replace(variant, unverified_because="verified by the caller")
        bundle = Path(name, "model.tvmb")
        facts = ModelFacts(model.name, model.sha256, model.opset)
        write_bundle(bundle, model=facts, signature=model.signature, variants=[variant])
        build_s = time.perf_counter() - started
        inputs = random_samples(path, model.signature, seed=0, count=samples)
        reference = ReferenceSession(path)
        compared, run_s, digest = [], [], hashlib.sha256()
        with load(bundle) as session:
            for sample in inputs:
                started = time.perf_counter()
                outputs = session.run(sample)
                run_s.append(time.perf_counter() - started)
                for output in outputs.values():
                    digest.update(output.tobytes())
                compared.append(compare_outputs(reference.run(sample), outputs, model.signature))
    kernels = {plan.symbol: plan.template.name for plan in plans}
    return Compared(merge_comparisons(compared), digest.hexdigest(), kernels, build_s, tuple(run_s))
