"""Shared libraries of a bundle on disk: a cache by content that trusts no folder and no file without looking."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tvmbridge.errors import OutputError


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$TVMBRIDGE_CACHE, else $XDG_CACHE_HOME/tvmbridge, else ~/.cache/tvmbridge."""
    if environ.get("TVMBRIDGE_CACHE"):
        return Path(environ["TVMBRIDGE_CACHE"]).absolute()
    if os.path.isabs(environ.get("XDG_CACHE_HOME", "")):
        return Path(environ["XDG_CACHE_HOME"]) / "tvmbridge"
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".cache" / "tvmbridge"


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


def write_cached(folder: Path, name: str, data: bytes) -> Path | None:
    """`folder/name` holding exactly `data`, written where it does not yet; None when the folder cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(os.lstat(folder), stat.S_ISDIR):
            return None
        path = folder / name
        if not _holds(path, data):
            _replace(path, data)
        return path if _holds(path, data) else None
    except OSError:
        # Read-only home, full disk, a file in the way: the caller has another place.
        return None


def _is_ours(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether only this user can change it: of this kind (no link), owned by us, not writable by others."""
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _holds(path: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        return _is_ours(status, stat.S_ISREG) and status.st_size == len(data) and stream.read() == data


def _replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, so that other processes see the whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
