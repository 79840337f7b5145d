"""Files that take their name when they are whole: whoever reads, and whoever is killed, sees the old one or the new."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ABANDONED_AFTER_S = 60.0  # a younger file may be one whose writer has not locked it yet
_LONGEST_STEM = 50  # characters, of up to four bytes: a file name may have 255


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` at the end of the `with`, flushed to disk; or nothing changes.

    mode: of the new file from its first byte on; None: what the umask leaves of 0666. It is written beside `path`,
    hidden, and locked as long as it is; what a killed process has left there of earlier tries is removed. Raises
    OSError.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name[:_LONGEST_STEM]}.{os.urandom(8).hex()}.tmp")
    # Exclusive: never through a link or into a file that somebody else put there.
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode
    )
    with open(descriptor, "wb") as stream:
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)  # what the umask took away
            with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for abandoned there
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stream
            stream.flush()
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove our files of earlier tries at `path` that nobody holds a lock on any more."""
    pattern = f".{glob.escape(path.name[:_LONGEST_STEM])}.{'[0-9a-f]' * 16}.tmp"
    for found in path.parent.glob(pattern):
        with contextlib.suppress(OSError):
            descriptor = os.open(found, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                if ours and time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found.unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
