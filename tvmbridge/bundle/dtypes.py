"""The element types a bundle may hold, by the names that signatures and weights use."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmbridge.errors import ArtifactError

# ml_dtypes gives NumPy those from bfloat16 on; NumPy itself has the others. An element of 4 or 2 bits takes a byte.
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
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn": 1,
    "int4": 1,
    "uint4": 1,
    "int2": 1,
    "uint2": 1,
}
EXTENDED = frozenset(list(ELEMENT_BYTES)[list(ELEMENT_BYTES).index("bfloat16") :])


def storage(name: str) -> str:
    """The dtype that a compiled model sees an input or output as: bits, of a type that NumPy alone lacks."""
    return f"uint{8 * ELEMENT_BYTES[name]}" if name in EXTENDED else name


def restore(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """An array as NumPy's files give it back, of the dtype that they forget where ml_dtypes has it."""
    forgotten = name in EXTENDED and array.dtype.kind == "V" and array.dtype.itemsize == ELEMENT_BYTES[name]
    return array.view(numpy_dtype(name)) if forgotten else array


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name in ELEMENT_BYTES; an ArtifactError where only ml_dtypes, not installed, defines it."""
    if name not in EXTENDED:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as exc:
        raise ArtifactError(f"the bundle uses {name}, which NumPy alone lacks", hint="pip install ml_dtypes") from exc
    return np.dtype(getattr(ml_dtypes, name))
