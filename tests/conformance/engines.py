"""The two engines that the suite runs on, tvmbridge and ONNX Runtime, and what became of a case on one of them."""

from __future__ import annotations

import dataclasses
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import onnx

from tests.conformance.cases import Case, run_case
from tvmbridge.errors import CompileError, ModelError, ToolchainError, TvmBridgeError

PASS, REFUSED, WRONG, CRASH, TIMEOUT = "pass", "refused", "wrong", "crash", "timeout"
IMPORT_ERROR, COMPILE_ERROR, RUN_ERROR = "import error", "compile error", "run error"
# "import error" is an exception that import should have translated; "refused" is one that it did.
OUTCOMES = (PASS, REFUSED, WRONG, IMPORT_ERROR, COMPILE_ERROR, RUN_ERROR, CRASH, TIMEOUT)
_STAGES = {"frontend": IMPORT_ERROR, "lowering": COMPILE_ERROR, "schedules": COMPILE_ERROR, "codegen": COMPILE_ERROR}


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a case.

    reason: one line; empty where it passed. bound: inputs whose values were bound at build time.
    computes: whether what was run still computes an output from an input.
    """

    case: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    bound: tuple[str, ...] = ()
    computes: bool = True


class TvmBridge:
    """tvmbridge.backend, keeping what it prepared. It has no is_compatible: no case is skipped."""

    def __init__(self) -> None:
        self.prepared: Any = None

    def prepare(self, model: onnx.ModelProto, device: str = "CPU", **options: Any) -> Any:
        """What tvmbridge.backend prepares."""
        import tvmbridge.backend as backend

        self.prepared = backend.prepare(model, device, threads=1, **options)
        return self.prepared

    def describe(self) -> dict[str, Any]:
        """What was bound, and whether anything is left to compute."""
        used = getattr(self.prepared, "used", None)
        return {} if used is None else {"bound": tuple(used.bound), "computes": used.computes}


class OnnxRuntime:
    """onnxruntime, on the CPU and one thread."""

    def prepare(self, model: onnx.ModelProto, device: str = "CPU", **_options: Any) -> Any:
        """A session; ModelError where ONNX Runtime does not take the model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime raises a class of its own for each status
            raise ModelError(str(exc)) from exc
        return _Runnable(lambda arrays: _run_session(session, model, arrays))

    def describe(self) -> dict[str, Any]:
        """Nothing is bound."""
        return {}


@dataclasses.dataclass(frozen=True)
class _Runnable:
    run: Callable[[list[Any]], list[Any]]


ENGINES: dict[str, Callable[[], Any]] = {"tvmbridge": TvmBridge, "onnxruntime": OnnxRuntime}


def run_on(engine: str, case: Case) -> Result:
    """Run a case; never raises what the case raises."""
    backend, started = ENGINES[engine](), time.monotonic()
    try:
        run_case(case, backend)
        outcome, why = PASS, ""
    except Exception as exc:
        outcome, why = _outcome(exc), short_reason(exc, case.model().graph.name)
    return Result(case.name, outcome, why, time.monotonic() - started, **backend.describe())


def short_reason(exc: BaseException, model: str = "") -> str:
    """One line without addresses, times of day and the model's name; of a wrong result, in what way it is wrong."""
    text = exc.message if isinstance(exc, TvmBridgeError) else str(exc)
    if _outcome(exc) == WRONG:
        return _in_what_way(text)
    text = re.sub(r"0x[0-9a-f]+", "ADDRESS", re.sub(r"\[?\d\d:\d\d:\d\d\]?", "", text))
    if isinstance(exc, TvmBridgeError):
        return " ".join(text.removeprefix(f"{model}: ").split())[:200]
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(exc).__name__}: {line}"[:200]


def _in_what_way(text: str) -> str:
    """The kind of a difference that NumPy's comparison reports."""
    kinds = {
        "shape": "incorrect shape",
        "dtype": "dtype(",
        "NaN in other places": "nan location mismatch",
        "infinity in other places": "inf location mismatch",
        "values": "mismatched elements",
    }
    return next((kind for kind, sign in kinds.items() if sign in text.lower()), " ".join(text.split())[:120])


def _outcome(exc: BaseException) -> str:
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(exc.__traceback__)]
    ours = [name for name in modules if name.startswith("tvmbridge.")]
    if isinstance(exc, AssertionError) and not ours:  # one of TVM's own is no wrong result
        return WRONG
    if isinstance(exc, ModelError):
        return REFUSED
    if isinstance(exc, (CompileError, ToolchainError)):
        return COMPILE_ERROR
    if isinstance(exc, TvmBridgeError):
        return RUN_ERROR
    stages = (stage for part, stage in _STAGES.items() if any(name.startswith(f"tvmbridge.{part}") for name in ours))
    return next(stages, RUN_ERROR)


def _run_session(session: Any, model: onnx.ModelProto, arrays: list[Any]) -> list[Any]:
    feeds = {entry.name: array for entry, array in zip(session.get_inputs(), arrays, strict=True)}
    return list(session.run(None, feeds))
