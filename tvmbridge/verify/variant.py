"""Holds a bundle's variants against ONNX Runtime: each runs as a user would run it, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from tvmbridge.bundle import Accuracy, BuiltVariant, ModelFacts, open_bundle, write_bundle
from tvmbridge.bundle.dtypes import restore
from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import AccuracyError, CompileError, DeviceError, NoVariantError, ReferenceUnavailable
from tvmbridge.frontend import ImportedModel
from tvmbridge.runtime import check_bundle
from tvmbridge.signature import ModelSignature
from tvmbridge.targets import RpcMeasure
from tvmbridge.verify.compare import Comparison, compare_outputs, default_tolerance, merge_comparisons
from tvmbridge.verify.elsewhere import RUN_TIMEOUT_S, Done, run_elsewhere
from tvmbridge.verify.inputs import random_samples, write_arrays
from tvmbridge.verify.latency import Latency
from tvmbridge.verify.reference import ReferenceSession

_RANDOM_SAMPLES = 2

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class VariantCheck:
    """What one variant did on this machine, or on a device.

    accuracy, latency: None where it did not run; `unverified_because` says why.
    threads: of a call when it was timed.
    kernel_us: by a kernel's name in the library, what its calls take of one run.
    problem: why it failed, in words; None where it passed or did not run.
    warnings: what makes the comparison prove less than it seems.
    """

    variant: str
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    threads: int | None = None
    kernel_us: Mapping[str, float] = dataclasses.field(default_factory=dict)
    problem: str | None = None
    unverified_because: str | None = None
    warnings: tuple[str, ...] = ()


def verify_variant(
    model: ImportedModel,
    variant: BuiltVariant,
    inputs: Arrays | None,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    seconds: float = 1.0,
    threads: int | None = None,
    on_run: Callable[[], None] | None = None,
) -> VariantCheck:
    """Check one variant before it is bundled, and time it beside ONNX Runtime for about `seconds`.

    A target that is measured over RPC is run on one of its devices, and timed there alone.

    threads: of both while they are timed; None: as many as the target has cores.

    A model that ONNX Runtime does not take, and a variant that this machine cannot run, or for which no device can be
    had, is unverified, not wrong.
    on_run: called when the variant is about to run. Raises ModelError where ONNX Runtime fails on the inputs.
    """
    bundle = variant.library.with_suffix(".verify.tvmb")
    facts = ModelFacts(model.name, model.sha256, model.opset)
    try:
        write_bundle(bundle, model=facts, signature=model.signature, variants=[variant], log=None)
        (check,) = check_variants(
            bundle,
            model.source,
            inputs=inputs,
            tolerance=tolerance,
            seed=seed,
            seconds=seconds,
            threads=threads,
            place=variant.target.measure if isinstance(variant.target.measure, RpcMeasure) else None,
            on_run=on_run,
        )
    except (DeviceError, ReferenceUnavailable) as exc:
        return VariantCheck(variant.target.name, unverified_because=exc.message)
    finally:
        bundle.unlink(missing_ok=True)
    return check


def check_variants(
    bundle: Path,
    source: Path | onnx.ModelProto,
    *,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    seconds: float = 1.0,
    threads: int | None = None,
    variant: str | None = None,
    place: RpcMeasure | None = None,
    on_run: Callable[[], None] | None = None,
) -> tuple[VariantCheck, ...]:
    """Run the bundle's variants, or the named one, on random data and on `inputs`; compare with ONNX Runtime.

    source: the ONNX model. tolerance: None: what the outputs' dtypes and the variant's precision allow. place: run them
    on a device of this key, where they are timed alone: ONNX Runtime runs here. Raises ReferenceUnavailable where ONNX
    Runtime does not take the model, ModelError where it fails on the inputs, ArtifactError where the bundle cannot be
    opened or has no such variant, DeviceError where no device can be had.
    """
    with open_bundle(bundle) as opened:
        signature = opened.manifest.signature
        precisions = {each.name: each.precision for each in opened.manifest.variants}
    names = list(precisions)
    if variant is not None and variant not in names:
        raise NoVariantError(f"{bundle} has no variant {variant!r}", hint=f"it has {', '.join(names)}")
    checks = {name: VariantCheck(name) for name in names if variant in (None, name)}
    if place is None:  # a device says itself what it cannot run
        verdicts = [verdict for verdict in check_bundle(bundle) if verdict.variant in checks]
        checks = {v.variant: VariantCheck(v.variant, unverified_because=v.reason) for v in verdicts}
        runnable = [verdict.variant for verdict in verdicts if verdict.level != "unsupported"]
    else:
        runnable = list(checks)
    if runnable:
        samples = [dict(inputs)] if inputs is not None else []  # the first one is timed too
        samples += random_samples(source, signature, seed=seed, count=_RANDOM_SAMPLES)
        reference = ReferenceSession(source)
        expected = [reference.run(sample) for sample in samples]
        for name in runnable:
            if on_run is not None:
                on_run()
            timing = {"seconds": seconds, "threads": threads}
            limit = default_tolerance(signature, precisions[name]) if tolerance is None else tolerance
            checks[name] = _check(
                bundle, name, source, signature, samples, expected, reference.version, limit, timing, place
            )
    return tuple(checks.values())


def require_working(check: VariantCheck, *, accept_inaccurate: bool) -> None:
    """Raise where the check found a problem: AccuracyError where the variant ran, CompileError where it crashed."""
    if check.problem is None:
        return
    if check.latency is None:
        raise CompileError(f"the built variant does not work: {check.problem}", hint="please report the model")
    if not accept_inaccurate:
        raise AccuracyError(
            check.problem,
            hint=f"--tolerance raises the limit; --accept-inaccurate {check.variant} writes the variant all the same",
        )


def _check(
    bundle: Path,
    variant: str,
    source: Path | onnx.ModelProto,
    signature: ModelSignature,
    samples: Sequence[Arrays],
    expected: Sequence[Arrays],
    reference: str,
    tolerance: float,
    timing: Mapping[str, float | None],
    place: RpcMeasure | None,
) -> VariantCheck:
    with tempfile.TemporaryDirectory(prefix="tvmbridge-verify-") as name:
        folder = Path(name)
        for index, sample in enumerate(samples):
            arrays = {f"i{i}": sample[spec.name] for i, spec in enumerate(signature.inputs)}
            write_arrays(folder / f"in{index}.npz", arrays)
        outputs = [str(folder / f"out{index}.npz") for index in range(len(samples))]
        request = {
            "bundle": str(bundle),
            "variant": variant,
            "samples": [str(folder / f"in{index}.npz") for index in range(len(samples))],
            "outputs": outputs,
            **timing,
        }
        if place is not None:
            done = run_elsewhere(place, request)
        else:
            ran = _run_here({**request, "reference": str(_as_file(source, folder))}, folder)
            if ran is None:
                return VariantCheck(variant, problem=f"it did not finish within {RUN_TIMEOUT_S:g} s")
            done = ran
        if done.status:
            return VariantCheck(variant, problem=f"it failed while it ran: {_ending(done)}")
        timed = json.loads(done.said)
        if "unsupported" in timed:
            return VariantCheck(variant, unverified_because=timed["unsupported"])
        comparison = merge_comparisons(
            compare_outputs(reference_outputs, _read_outputs(path, signature), signature)
            for reference_outputs, path in zip(expected, outputs, strict=True)
        )
    return VariantCheck(
        variant,
        accuracy=comparison.accuracy(reference, tolerance),
        latency=Latency(**timed["latency"]),
        threads=timed["threads"],
        kernel_us=timed["kernel_us"],
        problem=None if comparison.passes(tolerance) else _describe(comparison, reference, tolerance),
        warnings=comparison.warnings,
    )


def _run_here(request: Mapping[str, object], folder: Path) -> Done | None:
    """Run it in a process of its own on this machine; None where that takes too long."""
    (folder / "request.json").write_text(json.dumps(request))
    try:
        done = subprocess.run(
            child_command("tvmbridge.verify.worker", str(folder / "request.json")),
            env=child_environment(TVMBRIDGE_CACHE=str(folder / "cache")),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return Done(done.returncode, done.stdout, done.stderr)


def _describe(comparison: Comparison, reference: str, tolerance: float) -> str:
    worst = comparison.worst
    what = worst.mismatch or f"{worst.max_relative:.2e} relative, {worst.max_absolute:.2e} absolute"
    return f"output {worst.name!r} differs from {reference}'s: {what} (tolerance {tolerance:g} relative)"


def _as_file(source: Path | onnx.ModelProto, folder: Path) -> Path:
    """The model as a file that another process can read."""
    if not isinstance(source, onnx.ModelProto):
        return source
    path = folder / "model.onnx"
    # A copy: saving with external data changes the proto that it is given.
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    onnx.save(copy, path, save_as_external_data=True, location="model.data", convert_attribute=False)
    return path


def _read_outputs(path: str, signature: ModelSignature) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {spec.name: restore(arrays[f"o{index}"], spec.dtype) for index, spec in enumerate(signature.outputs)}


def _ending(done: Done) -> str:
    if done.status < 0:
        return f"killed by {signal.Signals(-done.status).name}"
    return done.said.strip() or done.complained.strip().rpartition("\n")[2] or f"exit code {done.status}"
