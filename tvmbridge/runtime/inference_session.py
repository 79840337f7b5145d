"""ONNX Runtime's InferenceSession over a bundle: for code that has one and should not be rewritten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmbridge.errors import InputError
from tvmbridge.runtime.session import load
from tvmbridge.signature import TensorSpec

# ONNX Runtime's names of element types, where they are not NumPy's.
_TYPES = {"float32": "float", "float64": "double", "float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output as ONNX Runtime describes it: type is "tensor(float)", an axis of `shape` may be None."""

    name: str
    type: str
    shape: list[int | None]


class InferenceSession:
    """Loads a bundle; `run` and the descriptions are those of `onnxruntime.InferenceSession`.

    sess_options: ONNX Runtime's SessionOptions, or anything with `intra_op_num_threads`, the one that is looked at.
    providers, provider_options: taken for the sake of the call; the bundle's variant decides. Raises as `load`.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str],
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        **_others: Any,
    ) -> None:
        threads = getattr(sess_options, "intra_op_num_threads", 0)
        self._session = load(path_or_bytes, threads=threads or None)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[np.ndarray[Any, Any]]:
        """The outputs in the order of `output_names`; all, in the model's order, where it is None or empty."""
        known = [spec.name for spec in self._session.outputs]
        for name in output_names or ():
            if name not in known:
                raise InputError(f"the model has no output {name!r}; it gives {', '.join(map(repr, known))}")
        results = self._session.run(input_feed)
        return [results[name] for name in output_names or known]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in the model's order."""
        return [_describe(spec) for spec in self._session.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the model's order."""
        return [_describe(spec) for spec in self._session.outputs]

    def get_providers(self) -> list[str]:
        """The variant that was chosen, in the place of execution providers."""
        return [f"tvmbridge:{self._session.variant}"]


def _describe(spec: TensorSpec) -> NodeArg:
    return NodeArg(spec.name, f"tensor({_TYPES.get(spec.dtype, spec.dtype)})", list(spec.shape))
