"""One graph through the whole compiler, in this process, against what ONNX Runtime gives."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import tvm
from tvm import relax

from tests.random_graphs.conditioning import differs
from tests.random_graphs.reference import Arrays
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.errors import ModelError, TvmBridgeError, reason
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target

AGREES, REFUSED, MISMATCH, FAILURE, UNDRAWN = "agrees", "refused", "mismatch", "failure", "not drawn"
REFERENCE = "agrees with onnx's reference"  # and ONNX Runtime does not


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a graph.

    kind: agrees; agrees with onnx's reference, where ONNX Runtime does not; refused, by name at import; mismatch;
    failure: anything else that goes wrong; not drawn: ONNX Runtime crashes on it.
    why: in a line. operators: those that a refusal names.
    """

    kind: str
    why: str = ""
    operators: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return self.kind in (MISMATCH, FAILURE)

    @property
    def way(self) -> tuple[str, str]:
        """In which way it is wrong: a mismatch, or a failure at which stage and of what kind."""
        return self.kind, "" if self.kind == MISMATCH else ":".join(cause(self).split(":")[:3])[:60]


def judge(model: onnx.ModelProto, feeds: Arrays, expected: Arrays, target: Target) -> Verdict:
    """Import, compile untuned, run, compare. A crash takes this process with it."""
    try:
        imported = import_onnx(model)
    except ModelError as exc:
        named = tuple(text.partition(" (")[0].removeprefix("ai.onnx.") for text in getattr(exc, "operators", ()))
        return Verdict(REFUSED, _line(exc), named)
    except Exception as exc:  # a foreign exception is what is looked for
        return Verdict(FAILURE, f"import: {_line(exc)}")
    stage = "lower"
    try:
        lowered = lower(imported, target)
        stage = "schedule"
        module, weights = assemble(lowered, [plan_kernel(kernel, target, None) for kernel in lowered.kernels])
        stage = "compile"
        machine = relax.VirtualMachine(machine_code(module, tvm_target(target)), tvm.cpu())
        stage = "run"
        fed = [
            tvm.runtime.tensor(np.ascontiguousarray(feeds[spec.name]).reshape(spec.shape))
            for spec in imported.signature.inputs
        ]
        results = machine["main"](*fed, *([[tvm.runtime.tensor(weight) for weight in weights]] if weights else []))
        arrays = [np.asarray(each.numpy()) for each in ([results] if hasattr(results, "numpy") else results)]
    except Exception as exc:  # as above
        return Verdict(FAILURE, f"{stage}: {_line(exc)}")
    actual = dict(zip((spec.name for spec in imported.signature.outputs), arrays, strict=True))
    if list(actual) != list(expected):
        return Verdict(FAILURE, f"outputs {list(actual)} instead of {list(expected)}")
    for name, value in expected.items():
        difference = differs(value, actual[name])
        if difference is not None:
            return Verdict(MISMATCH, f"{name}: {difference}")
    return Verdict(AGREES)


def _line(exc: Exception) -> str:
    text = exc.message if isinstance(exc, TvmBridgeError) else f"{type(exc).__name__}: {reason(exc)}"
    return " ".join(text.split())[:600]


def cause(verdict: Verdict) -> str:
    """The verdict's reason without names and numbers, to count alike ones together."""
    if verdict.operators:
        return "operators " + ", ".join(sorted(set(verdict.operators)))
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", verdict.why)
    return re.sub(r"\d+", "N", text)[:160]
