"""Shared libraries of a bundle as files that the dynamic linker can load: in the cache, by content, or private."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmbridge.cache import write_cached
from tvmbridge.errors import OutputError


@contextmanager
def extracted_library(data: bytes, folder: Path) -> Iterator[Path]:
    """A file with these bytes, to be loaded inside the `with`: from the cache, or private and removed afterwards.

    data: the library; its digest has been checked.
    folder: the cache; when it is not ours alone, or cannot be written, a temporary folder takes its place.
    Raises OutputError when neither can be written.
    """
    name = f"{hashlib.sha256(data).hexdigest()}.so"
    cached = write_cached(folder, name, data)
    if cached is not None:
        yield cached
        return
    import tempfile  # seldom needed, and every start would pay for the import

    try:
        private = tempfile.TemporaryDirectory(prefix="tvmbridge-")
    except OSError as exc:
        raise OutputError(f"cannot extract a library: {exc}", hint="set TVMBRIDGE_CACHE to a writable folder") from exc
    with private:
        path = Path(private.name) / name
        try:
            path.write_bytes(data)
        except OSError as exc:
            raise OutputError(
                f"cannot extract a library to {path.parent}: {exc.strerror}",
                hint="free some space, or set TVMBRIDGE_CACHE",
            ) from exc
        yield path
