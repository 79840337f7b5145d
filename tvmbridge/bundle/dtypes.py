"""The element types a bundle may hold, by the names that signatures and weights use."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmbridge.errors import ArtifactError

# ml_dtypes gives NumPy the last three; NumPy itself has the others.
ELEMENT_BYTES = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
EXTENDED = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name in ELEMENT_BYTES; an ArtifactError where only ml_dtypes, not installed, defines it."""
    if name not in EXTENDED:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as exc:
        raise ArtifactError(f"the bundle uses {name}, which NumPy alone lacks", hint="pip install ml_dtypes") from exc
    return np.dtype(getattr(ml_dtypes, name))
