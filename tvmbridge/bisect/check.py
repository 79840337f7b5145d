"""Holds one model, compiled, against ONNX Runtime, whatever the compiler or the compiled code may do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.errors import ModelError, TvmBridgeError
from tvmbridge.frontend import import_onnx
from tvmbridge.isolate import Limits, call_isolated
from tvmbridge.lowering import lower
from tvmbridge.runtime import load
from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.targets import Target
from tvmbridge.tuning.log import read_logs
from tvmbridge.verify.compare import OutputComparison, compare_outputs, default_tolerance
from tvmbridge.verify.reference import ReferenceSession

Arrays = Mapping[str, np.ndarray]
Run = Callable[[onnx.ModelProto, Arrays], Arrays]

_PLAIN_LIMIT_BYTES = 2**30  # past it the weights go into a file beside the model


@dataclasses.dataclass(frozen=True)
class Check:
    """How a compiled model did.

    status: "right"; "differs" from ONNX Runtime's outputs; "fails": it is refused, or crashes, when it is imported,
    compiled or run; "unknown": ONNX Runtime does not take it.
    outputs: compared; only where it ran. problem: what failed, in words. expected: ONNX Runtime's outputs.
    """

    status: Literal["right", "differs", "fails", "unknown"]
    outputs: tuple[OutputComparison, ...] = ()
    problem: str | None = None
    expected: Arrays = dataclasses.field(default_factory=dict, repr=False)

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong with the compiled model."""
        return self.status in ("differs", "fails")


def check_model(model: onnx.ModelProto, feeds: Arrays, tolerance: float | None, run: Run) -> Check:
    """Run the model in ONNX Runtime and with `run`, and compare; tolerance: None: what the outputs' dtypes allow."""
    try:
        expected = ReferenceSession(model).run(feeds)
    except ModelError as exc:
        return Check("unknown", problem=exc.message)
    try:
        actual = run(model, feeds)
    except TvmBridgeError as exc:
        return Check("fails", problem=f"{type(exc).__name__}: {exc.message}", expected=expected)
    outputs = compare(expected, actual, tolerance)
    return Check("differs" if differing(outputs, expected, tolerance) else "right", outputs, expected=expected)


def compare(expected: Arrays, actual: Arrays, tolerance: float | None) -> tuple[OutputComparison, ...]:
    """One comparison for each expected output, in their order."""
    specs = (TensorSpec(name, value.shape, value.dtype.name) for name, value in expected.items())
    return compare_outputs(expected, actual, ModelSignature((), tuple(specs))).outputs


def differing(outputs: tuple[OutputComparison, ...], expected: Arrays, tolerance: float | None) -> tuple[str, ...]:
    """Names of the outputs that differ by more than the tolerance, or by more than their dtype allows."""
    names = []
    for output in outputs:
        value = expected[output.name]
        spec = TensorSpec(output.name, value.shape, value.dtype.name)
        limit = default_tolerance(ModelSignature((), (spec,))) if tolerance is None else tolerance
        if output.mismatch is not None or not output.max_relative <= limit:
            names.append(output.name)
    return tuple(names)


def compile_and_run(
    model: onnx.ModelProto, feeds: Arrays, *, target: Target, log: Path | None, limits: Limits
) -> dict[str, np.ndarray]:
    """The outputs of the compiled model, by name, all done in a process of its own; raises TvmBridgeError."""
    with tempfile.TemporaryDirectory(prefix="tvmbridge-bisect-") as name:
        path = Path(name, "model.onnx")
        write_model(model, path)
        return call_isolated(_compile_and_run, path, dict(feeds), target, log, limits=limits, quiet=True)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Save a model; a large one with its weights beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving with external data changes the proto that it is given
    external = copy.ByteSize() > _PLAIN_LIMIT_BYTES
    onnx.save(copy, path, save_as_external_data=external, location=f"{path.stem}.data", convert_attribute=False)


def _compile_and_run(path: Path, feeds: Arrays, target: Target, log: Path | None) -> dict[str, np.ndarray]:
    imported = import_onnx(path)
    records = read_logs([log]) if log is not None else None
    with tempfile.TemporaryDirectory(prefix="tvmbridge-bisect-") as name:
        variant, _ = build_variant(lower(imported, target), target, records, Path(name))
        bundle = Path(name, "model.tvmb")
        facts = ModelFacts(imported.name, imported.sha256, imported.opset)
        write_bundle(bundle, model=facts, signature=imported.signature, variants=[variant], log=None)
        with load(bundle) as session:
            return {name: np.array(value) for name, value in session.run(feeds).items()}
