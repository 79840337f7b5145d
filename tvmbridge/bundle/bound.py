"""Inputs of a model that were bound to values at build time, as a manifest lists them: a check must bind them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tvmbridge.bundle.dtypes import ELEMENT_BYTES, numpy_dtype
from tvmbridge.errors import InputError

_MAX_DATA_BYTES = 64 * 1024


class BoundValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An input of the model that was bound to a value when the bundle was built, and is no input of it.

    sha256: of its elements in C order, little-endian. data: those bytes; None where there are more than 64 KiB.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    data: bytes | None = None


def describe_values(values: Mapping[str, np.ndarray[Any, Any]]) -> tuple[BoundValue, ...]:
    """How a manifest lists bound values, by name."""
    return tuple(_describe(name, values[name]) for name in sorted(values))


def _describe(name: str, value: np.ndarray[Any, Any]) -> BoundValue:
    data = value.tobytes()
    kept = data if len(data) <= _MAX_DATA_BYTES else None
    return BoundValue(name, value.dtype.name, value.shape, hashlib.sha256(data).hexdigest(), kept)


def read_values(
    bound: Sequence[BoundValue], given: Mapping[str, Any], *, source: str
) -> dict[str, np.ndarray[Any, Any]]:
    """The values that a bundle was built with, by input; `given` are those that the caller has.

    Raises InputError where a value is too long for the bundle to hold and is not given, or another one is given.
    """
    values = {}
    for entry in bound:
        dtype = numpy_dtype(entry.dtype)
        if entry.name in given:
            value = np.asarray(given[entry.name], dtype)
            same = value.shape == entry.shape and np.array_equal(value, np.asarray(given[entry.name]))
            if not same or hashlib.sha256(value.tobytes()).hexdigest() != entry.sha256:
                raise InputError(
                    f"{source} was built with another value of {entry.name!r}",
                    hint="leave it out: the bundle knows it" if entry.data is not None else "give that value",
                )
        elif entry.data is None:
            raise InputError(
                f"{source} was built with {entry.name!r} bound to {entry.dtype}{list(entry.shape)}, which it lacks",
                hint=f"give the value again: --value {entry.name}=value.npy",
            )
        else:
            value = np.frombuffer(entry.data, dtype).reshape(entry.shape)
        values[entry.name] = value
    unknown = sorted(given.keys() - values.keys())
    if unknown:
        raise InputError(f"{source} was built without a value for {', '.join(map(repr, unknown))}")
    return values


def find_bound_fault(bound: Sequence[BoundValue]) -> str | None:
    """What is wrong with a manifest's list; None for a good one."""
    if len({entry.name for entry in bound}) < len(bound):
        return "two bound values have the same name"
    for entry in bound:
        if entry.dtype not in ELEMENT_BYTES or any(axis < 0 for axis in entry.shape):
            return f"the bound value {entry.name[:80]!r} has no usable dtype and shape"
        if entry.data is not None:
            size_bytes = ELEMENT_BYTES[entry.dtype] * int(np.prod(entry.shape, dtype=object))
            if len(entry.data) != size_bytes or hashlib.sha256(entry.data).hexdigest() != entry.sha256:
                return f"the bound value {entry.name[:80]!r} has other bytes than it says"
    return None
