"""The two engines that the suite runs on, tvmbridge and ONNX Runtime, and what became of a case on one of them."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.conformance.cases import Case, StrictRunner, run_case
from tests.conformance.exact import is_nearer
from tvmbridge.errors import CompileError, ModelError, ToolchainError, TvmBridgeError

PASS, REFUSED, WRONG, CRASH, TIMEOUT = "pass", "refused", "wrong", "crash", "timeout"
NEARER = "nearer"  # not the suite's values, but nearer than those to the exact ones: no pass, and not wrong
IMPORT_ERROR, COMPILE_ERROR, RUN_ERROR = "import error", "compile error", "run error"
# "import error" is an exception that import should have translated; "refused" is one that it did.
OUTCOMES = (PASS, NEARER, REFUSED, WRONG, IMPORT_ERROR, COMPILE_ERROR, RUN_ERROR, CRASH, TIMEOUT)
# Element types that NumPy itself lacks.
_NARROW = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4")) or name in ("INT4", "UINT4", "INT2", "UINT2")
)
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


class _Recorder:
    """A backend that keeps what was last run on."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.inputs: list[Any] = []

    def prepare(self, model: onnx.ModelProto, device: str = "CPU", **options: Any) -> Any:
        """What the backend prepares."""
        prepared = self._backend.prepare(model, device, **options)

        def run(arrays: list[Any]) -> Any:
            self.inputs = list(arrays)
            return prepared.run(arrays)

        return _Runnable(run)

    @staticmethod
    def supports_device(device: str) -> bool:
        """The CPU alone."""
        return device == "CPU"


ENGINES: dict[str, Callable[[], Any]] = {"tvmbridge": TvmBridge, "onnxruntime": OnnxRuntime}


def run_on(engine: str, case: Case) -> Result:
    """Run a case; never raises what the case raises."""
    backend, started = ENGINES[engine](), time.monotonic()
    recorder = _Recorder(backend)
    try:
        run_case(case, recorder)
        outcome, why = PASS, ""
    except Exception as exc:
        outcome, why = _outcome(exc), short_reason(exc, case.model().graph.name)
        if (outcome, why) == (WRONG, "values") and is_nearer(case.model(), recorder.inputs, *StrictRunner.last):
            outcome, why = NEARER, "the suite's values are further from the exact ones"
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
    """All outputs, through ONNX Runtime's own tensors where NumPy alone lacks an element type."""
    given = session.get_inputs()
    arrays = [np.asarray(array) if isinstance(array, np.generic) else array for array in arrays]
    entries = [entry for entry in model.graph.input if entry.name in {value.name for value in given}]
    if not _NARROW & {entry.type.tensor_type.elem_type for entry in [*entries, *model.graph.output]}:
        return list(session.run(None, {value.name: array for value, array in zip(given, arrays, strict=True)}))
    feeds = {entry.name: _to_ort(numpy_helper.from_array(array)) for entry, array in zip(entries, arrays, strict=True)}
    return [_from_ort(value) for value in session.run_with_ort_values(None, feeds)]


def _to_ort(tensor: onnx.TensorProto) -> Any:
    from onnxruntime import OrtValue

    value = OrtValue.ortvalue_from_shape_and_type(list(tensor.dims), tensor.data_type)
    ctypes.memmove(value.data_ptr(), tensor.raw_data, len(tensor.raw_data))
    return value


def _from_ort(value: Any) -> np.ndarray:
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return numpy_helper.to_array(onnx.TensorProto(dims=value.shape(), data_type=value.element_type(), raw_data=data))
