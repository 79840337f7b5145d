"""A call's arrays against the model's signature: nothing is cast or reshaped, everything wrong is named."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tvmbridge.bundle.dtypes import numpy_dtype
from tvmbridge.errors import InputError
from tvmbridge.signature import TensorSpec


class DeviceInputs(Protocol):
    """Takes what lies on a session's device already, and needs no array."""

    def take(self, spec: TensorSpec, value: Any) -> Any | None:
        """The value as `Memory.feed` takes it, checked; None where it lies elsewhere. Raises InputError."""


class FeedChecker:
    """Turns the dict that run() takes into arrays in the model's order.

    device_inputs: for a session whose device has memory of its own.
    """

    def __init__(self, specs: Sequence[TensorSpec], device_inputs: DeviceInputs | None = None) -> None:
        self._specs = tuple(specs)
        self._device_inputs = device_inputs
        self._expected = tuple((spec.name, numpy_dtype(spec.dtype), spec.shape) for spec in specs)

    def order(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The arrays of the inputs, each of exactly the dtype and shape of its spec, and each index within its limit.

        What lies on the session's device comes as `device_inputs` takes it. Raises InputError.
        """
        if not isinstance(feeds, Mapping):
            raise InputError(
                f"run() takes a dict of arrays by input name, not a {type(feeds).__name__}", hint=self._show_call()
            )
        if feeds.keys() != {name for name, _, _ in self._expected}:
            self._refuse_names(feeds)
        arrays: list[Any] = []
        for index, (name, dtype, shape) in enumerate(self._expected):
            value = feeds[name]
            if type(value) is not np.ndarray and self._device_inputs is not None:
                taken = self._device_inputs.take(self._specs[index], value)
                if taken is not None:
                    arrays.append(taken)
                    continue
            if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
                value = _convert(self._specs[index], dtype, value)
            if self._specs[index].index_limit is not None:
                require_in_range(self._specs[index], value)
            arrays.append(value)
        return arrays

    def _refuse_names(self, feeds: Mapping[str, Any]) -> None:
        import difflib

        names = [spec.name for spec in self._specs]
        for name in feeds:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else self._show_call()
                raise InputError(f"the model has no input {name!r}; it takes {', '.join(map(repr, names))}", hint=hint)
        missing = [str(spec) for spec in self._specs if spec.name not in feeds]
        raise InputError(f"input missing: {'; '.join(missing)}", hint=self._show_call())

    def _show_call(self) -> str:
        return f"session.run({{{', '.join(f'{spec.name!r}: ...' for spec in self._specs)}}})"


class ResultChecker:
    """Turns the dict that run(out=…) takes into arrays in the model's order."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        self._dtypes = tuple(numpy_dtype(spec.dtype) for spec in specs)

    def order(self, out: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any] | None]:
        """For each output the array to write it to, of exactly its dtype and shape; None where none was given.

        Raises InputError.
        """
        if not isinstance(out, Mapping):
            raise InputError(f"run() takes out as a dict of arrays by output name, not a {type(out).__name__}")
        names = [spec.name for spec in self._specs]
        for name in out:
            if name not in names:
                raise InputError(f"the model has no output {name!r}; it gives {', '.join(map(repr, names))}")
        places = [
            self._require_fitting(spec, dtype, out[spec.name]) if spec.name in out else None
            for spec, dtype in zip(self._specs, self._dtypes, strict=True)
        ]
        for first, second in itertools.combinations(names, 2):
            if first in out and second in out and np.shares_memory(out[first], out[second]):
                raise InputError(f"outputs {first!r} and {second!r}: the arrays given as out share memory")
        return places

    def _require_fitting(self, spec: TensorSpec, dtype: np.dtype[Any], array: object) -> np.ndarray[Any, Any]:
        if not isinstance(array, np.ndarray):
            raise InputError(f"output {spec.name!r}: a {type(array).__name__} given as out, a NumPy array expected")
        fits = len(array.shape) == len(spec.shape) and all(
            wanted in (None, given) for wanted, given in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            given = f"{array.dtype}{list(array.shape)}"
            raise InputError(f"output {spec.name!r}: {given} given as out, {spec} expected")
        if not array.flags.writeable:
            raise InputError(f"output {spec.name!r}: the array given as out is read-only", hint="give a writable one")
        return array


def _convert(spec: TensorSpec, dtype: np.dtype[Any], value: Any) -> np.ndarray[Any, Any]:
    try:
        # DLPack for what has nothing else: np.asarray would take that for an object.
        array = np.from_dlpack(value) if _is_only_dlpack(value) else np.asarray(value)
    except Exception as exc:  # np.asarray runs the value's own conversion, which may raise anything
        raise InputError(f"input {spec.name!r}: a {type(value).__name__} is no array: {exc}") from exc
    if array.dtype != dtype:
        raise InputError(
            f"input {spec.name!r}: dtype {array.dtype} given, {spec.dtype} expected",
            hint=f"numbers are never converted silently: np.asarray(...).astype({spec.dtype!r})",
        )
    if array.shape != spec.shape:
        raise InputError(
            f"input {spec.name!r}: shape {list(array.shape)} given, {list(spec.shape)} expected",
            hint=_explain(spec, array),
        )
    return array


def _is_only_dlpack(value: Any) -> bool:
    return hasattr(value, "__dlpack__") and not (hasattr(value, "__array__") or hasattr(value, "__array_interface__"))


def require_in_range(spec: TensorSpec, array: np.ndarray[Any, Any]) -> None:
    """Refuse an index out of range: the compiled model would clip it, and compute something else."""
    limit = spec.index_limit
    if limit is None or not array.size:
        return
    for value in (int(array.min()), int(array.max())):
        if not -limit <= value < limit:
            raise InputError(
                f"input {spec.name!r}: {value} is no index of {limit} elements",
                hint=f"the model looks its values up: they lie between {-limit} and {limit - 1}",
            )


def _explain(spec: TensorSpec, array: np.ndarray[Any, Any]) -> str:
    if len(spec.shape) == array.ndim + 1 and spec.shape[0] == 1 and array.shape == spec.shape[1:]:
        return f"add the batch axis: {spec.name}[np.newaxis]"
    if len(spec.shape) == array.ndim and array.shape[1:] == spec.shape[1:]:
        return (
            f"the model was built for a batch of {spec.shape[0]}: call it once a batch, or build it with another shape"
        )
    return f"shapes are fixed when a model is built: {spec}"
