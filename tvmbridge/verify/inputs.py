"""Makes or reads the inputs that a model is verified with."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tvmbridge.atomic_file import replacing
from tvmbridge.bundle.dtypes import numpy_dtype, restore
from tvmbridge.errors import InputError, OutputError, reason
from tvmbridge.signature import ModelSignature, TensorSpec

if TYPE_CHECKING:
    import onnx


def random_inputs(
    source: str | os.PathLike[str] | onnx.ModelProto | None, signature: ModelSignature, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Seeded inputs that the model can take: the same seed gives the same arrays.

    Floats are normal; booleans even; integers that end up as indices lie within what they index; other bytes have
    their whole range, other integers are 0 or 1 (masks, mostly). source: the ONNX model, to follow also the indices in
    that it changes before it uses them; None where there is none: then the limits are those of the signature.
    """
    return random_samples(source, signature, seed=seed, count=1)[0]


def random_samples(
    source: str | os.PathLike[str] | onnx.ModelProto | None, signature: ModelSignature, *, seed: int, count: int
) -> list[dict[str, np.ndarray]]:
    """`random_inputs` of `count` seeds from `seed` on; the model is read once."""
    limits: dict[str, int] = {}
    if source is not None:
        from tvmbridge.verify.index_limits import index_limits  # imports onnx, which a device may lack

        limits = index_limits(source, signature)
    generators = (np.random.default_rng(seed + index) for index in range(count))
    return [
        {spec.name: _draw(spec, _smaller(spec, limits), generator) for spec in signature.inputs}
        for generator in generators
    ]


def _smaller(spec: TensorSpec, limits: dict[str, int]) -> int | None:
    known = [limit for limit in (spec.index_limit, limits.get(spec.name)) if limit is not None]
    return min(known, default=None)


def read_inputs(path: str | os.PathLike[str], signature: ModelSignature) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, one for each input by its name; InputError says what is missing, unknown or unfit.

    Shapes must match; a dtype is converted only where no value changes. Pickled objects are not read.
    """
    file = Path(path)
    written = "write it with numpy.savez(path, **inputs)"
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{file} holds one array and no names", hint=written)
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as exc:
        raise InputError(f"{file}: no such file", hint=written) from exc
    except InputError:
        raise
    except Exception as exc:  # NumPy, zipfile and zlib raise a dozen kinds on damaged files
        raise InputError(f"{file} is no readable .npz file of plain arrays: {reason(exc)}", hint=written) from exc
    return _match(arrays, signature, str(file))


def _draw(spec: TensorSpec, limit: int | None, generator: np.random.Generator) -> np.ndarray:
    dtype = numpy_dtype(spec.dtype)
    shape = tuple(axis or 0 for axis in spec.shape)
    if limit is not None:
        return generator.integers(0, max(1, limit), shape).astype(dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        lowest, highest = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.itemsize == 1 else (0, 1)
        return generator.integers(lowest, highest, shape, endpoint=True).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _match(arrays: dict[str, np.ndarray], signature: ModelSignature, file: str) -> dict[str, np.ndarray]:
    wants = f"the model takes {', '.join(map(str, signature.inputs)) or 'no inputs'}"
    names = [spec.name for spec in signature.inputs]
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    if missing or unknown:
        parts = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        parts += [f"has the unknown {', '.join(map(repr, unknown))}"] if unknown else []
        raise InputError(f"{file} {' and '.join(parts)}", hint=wants)
    return {spec.name: _fit(arrays[spec.name], spec, file) for spec in signature.inputs}


def _fit(array: np.ndarray, spec: TensorSpec, file: str) -> np.ndarray:
    if array.shape != spec.shape:
        raise InputError(f"{file}: {spec.name!r} has shape {array.shape}", hint=f"the model takes {spec}")
    dtype = numpy_dtype(spec.dtype)
    array = restore(array, spec.dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise InputError(f"{file}: {spec.name!r} has dtype {array.dtype}", hint=f"the model takes {spec}")
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        unchanged = np.array_equal(converted.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
    if not unchanged:
        raise InputError(
            f"{file}: {spec.name!r} has dtype {array.dtype}, and not every value fits {spec.dtype}",
            hint=f"convert it yourself: array.astype({spec.dtype!r})",
        )
    return converted


def write_arrays(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an .npz file, each under its own name; OutputError where it cannot be written.

    Atomic: a file that is already there is replaced at the end, by a whole one, or stays as it is.
    """
    try:
        with replacing(Path(path)) as stream:
            _write_members(stream, arrays)
    except OSError as exc:
        raise OutputError(f"{path}: cannot write the arrays: {exc.strerror or exc}") from exc


def _write_members(stream: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    # numpy.savez takes the names as keywords, of which "file" is its own.
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
