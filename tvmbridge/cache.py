"""The user's cache folder and small files in it: no folder and no file there is trusted without looking."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from tvmbridge.atomic_file import replacing


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$TVMBRIDGE_CACHE, else $XDG_CACHE_HOME/tvmbridge, else ~/.cache/tvmbridge."""
    if environ.get("TVMBRIDGE_CACHE"):
        return Path(environ["TVMBRIDGE_CACHE"]).absolute()
    if os.path.isabs(environ.get("XDG_CACHE_HOME", "")):
        return Path(environ["XDG_CACHE_HOME"]) / "tvmbridge"
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".cache" / "tvmbridge"


def read_cached(folder: Path, name: str) -> bytes | None:
    """What `folder/name` holds; None where there is no such file, or somebody else could have written it."""
    try:
        if not _is_ours(os.lstat(folder), stat.S_ISDIR):
            return None
        with _open_ours(folder / name) as stream:
            return stream.read()
    except OSError:
        return None


def write_cached(folder: Path, name: str, data: bytes) -> Path | None:
    """`folder/name` holding exactly `data`, written where it does not yet; None when the folder cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(os.lstat(folder), stat.S_ISDIR):
            return None
        path = folder / name
        if not _holds(path, data):
            with replacing(path, 0o700) as stream:
                stream.write(data)
        return path if _holds(path, data) else None
    except OSError:
        # Read-only home, full disk, a file in the way: the caller has another place.
        return None


def _is_ours(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    """Whether only this user can change it: of this kind (no link), owned by us, not writable by others."""
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _holds(path: Path, data: bytes) -> bool:
    try:
        with _open_ours(path) as stream:
            return os.fstat(stream.fileno()).st_size == len(data) and stream.read() == data
    except OSError:
        return False


def _open_ours(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not _is_ours(os.fstat(descriptor), stat.S_ISREG):
        os.close(descriptor)
        raise PermissionError(f"{path} could have been written by somebody else")
    return open(descriptor, "rb")
