"""Holds a quick candidate's outputs against those of the untuned schedule: a wrong result is no gain."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Scheduled
from tvmbridge.tuning.measure.operands import RandomData

Function = Callable[..., object]

# Of max|a-b| / max|reference|: several times what another order of additions, or Winograd's transforms, come to.
_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}


class References:
    """The outputs of untuned schedules, in files that the processes of one worker share.

    folder: where they are kept; one file a kernel, written by the first who needs it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def why_wrong(
        self,
        kernel: Kernel,
        scheduled: Scheduled,
        function: Function,
        data: RandomData,
        untuned: Callable[[], tuple[Scheduled, Function]],
    ) -> str | None:
        """What is wrong with a compiled candidate's outputs; None where they agree with the untuned schedule's.

        untuned: compiles that one; called where nobody has kept its outputs yet.
        """
        path = self._folder / f"{hashlib.sha256(kernel.key.encode()).hexdigest()}.npz"
        if not path.exists():
            _save(path, _outputs(kernel, *untuned(), data))
        with np.load(path) as expected:
            for name, output in _outputs(kernel, scheduled, function, data).items():
                if problem := _difference(expected[name], output, str(kernel.function.params[int(name)].dtype)):
                    return problem
        return None


def _outputs(kernel: Kernel, scheduled: Scheduled, function: Function, data: RandomData) -> dict[str, np.ndarray]:
    """Every tensor that is no weight, after one call, by its position; the same operands for every schedule."""
    packings = {packing.parameter: packing for packing in scheduled.packings}
    operands = [data.copy(parameter) for parameter in kernel.function.params]
    for index, packing in packings.items():
        operands[index] = tvm.runtime.tensor(packing.pack(operands[index].numpy()))
    function(*operands)
    kept = {str(i): operand.numpy() for i, operand in enumerate(operands) if i not in kernel.constants}
    return {name: array.astype(np.float32) if array.dtype.kind == "V" else array for name, array in kept.items()}


def _save(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    unfinished = path.with_name(f"{os.getpid()}.npz")
    np.savez(unfinished, **dict(outputs))  # type: ignore[arg-type]
    unfinished.replace(path)


def _difference(expected: np.ndarray, got: np.ndarray, dtype: str) -> str | None:
    """Only where the reference is finite: what a schedule does to infinities and NaNs is not what this is for."""
    tolerance = _TOLERANCE.get(dtype)
    if tolerance is None:
        wrong = int((expected != got).sum())
        return f"wrong result: {wrong} of {got.size} elements differ" if wrong else None
    finite = np.isfinite(expected)
    if not finite.all():
        expected, got = expected[finite], got[finite]
    if not expected.size:
        return None
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(np.subtract(expected, got, dtype=np.result_type(expected, np.float32))).max()) / scale
    if error <= tolerance:
        return None
    shown = f"{error:.1e} relative" if math.isfinite(error) else "not finite"
    return f"wrong result: {shown} (allowed {tolerance:g}) beside the untuned schedule's"
