"""Runs a model in ONNX Runtime, the reference. The only file that knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmbridge.errors import ModelError, ReferenceUnavailable, reason

if TYPE_CHECKING:
    import onnx

_FATAL_ONLY = 4  # ONNX Runtime's log level
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_NARROW = re.compile(r"tensor\((bfloat16|float[48]e.*|u?int[24])\)")
_ARRAYS = frozenset(f"tensor({kind})" for kind in ("bool", "float16", "float", "double", *_INTEGERS))


class ReferenceSession:
    """A model loaded into ONNX Runtime on the CPU.

    source: the file (external data is found beside it) or the proto; threads: of one operator, None for all cores.
    Raises ReferenceUnavailable where ONNX Runtime is not installed or does not take the model.
    """

    def __init__(self, source: str | os.PathLike[str] | onnx.ModelProto, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise ReferenceUnavailable(
                f"reference unavailable: {reason(exc)}", hint="install it: pip install onnxruntime"
            ) from exc
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or 0
        self.version = f"onnxruntime {onnxruntime.__version__}"
        try:
            model = (
                _path_or_bytes(Path(source)) if isinstance(source, (str, os.PathLike)) else source.SerializeToString()
            )
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # its C++ exceptions share no base class; protobuf's past 2 GB neither
            raise ReferenceUnavailable(
                f"reference unavailable: {self.version} does not take the model: {reason(exc)}",
                hint="without it nothing says whether the compiled model is right: export it with other operators",
            ) from exc
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def arrays(self) -> tuple[str, ...]:
        """The outputs that NumPy holds as they are: tensors of numbers in its own dtypes."""
        return tuple(output.name for output in self._session.get_outputs() if output.type in _ARRAYS)

    def _require_arrays(self, names: Sequence[str]) -> None:
        """Its Python interface neither takes nor gives most of the types that NumPy alone lacks."""
        wanted = [output for output in self._session.get_outputs() if output.name in names]
        narrow = [entry for entry in (*self._session.get_inputs(), *wanted) if _NARROW.match(entry.type)]
        if narrow:
            raise ReferenceUnavailable(
                f"reference unavailable: {self.version} passes no {narrow[0].type} in Python: {narrow[0].name!r}",
                hint="nothing says whether the compiled model is right: cast to float32 in the model",
            )

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name; feeds: every input by name, in its shape and dtype. ModelError where they make it fail,
        ReferenceUnavailable where an input or a wanted output is of a type like bfloat16.

        outputs: names of those that are wanted; None: all.
        """
        names = self._outputs if outputs is None else list(outputs)
        if not names:
            return {}
        self._require_arrays(names)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as exc:  # its C++ exceptions share no base class; wrong feeds raise ValueError
            raise ModelError(
                f"{self.version} failed on the inputs: {reason(exc)}", hint="give inputs that the ONNX model takes"
            ) from exc
        return dict(zip(names, values, strict=True))


def _path_or_bytes(path: Path) -> str | bytes:
    """What ONNX Runtime opens: it takes no path that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return str(path)
