"""The tuning log on disk: read, append under a lock, merge. The format is in docs/tuning-log-format.md."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tvmbridge.atomic_file import replacing
from tvmbridge.errors import LogError, OutputError
from tvmbridge.tuning.lookup import LogRecords, parse_log, whole_bytes
from tvmbridge.tuning.record import (
    LOG_VERSION,
    TrialRecord,
    parse_header,
    render_config,
    render_header,
    render_record,
)
from tvmbridge.version import PROGRAM

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = [
    "LogRecords",
    "TrialRecord",
    "TuningLog",
    "merge_logs",
    "parse_log",
    "read_log",
    "read_logs",
    "render_config",
    "render_log",
    "render_record",
    "rewrite_log",
]

_SUFFIX = ".tune.jsonl"

LOGGER = logging.getLogger(__name__)


class TuningLog(LogRecords):
    """A tuning log open for appending; made by `TuningLog.open`, used as a context manager.

    torn: what was cut off the end of the file when it was opened; None where it ended whole.
    """

    def __init__(
        self, path: Path, records: LogRecords, descriptor: int, lock: FileLock, also: Iterable[TrialRecord] = ()
    ) -> None:
        super().__init__(records, source=records.source, torn=records.torn, also=also)
        self.path = path
        self._lock = lock
        self._descriptor: int | None = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, also: Sequence[str | os.PathLike[str]] = ()) -> TuningLog:
        """Open a log for appending and lock it against other writers; a missing or empty file becomes a fresh log.

        A log of an older version becomes one of this version, with the same records, in one step.
        also: further logs to look records up in, as `read_logs` takes them; they are read once, now.
        LogError where the file is foreign, damaged, newer or in use; OutputError where it cannot be written.
        """
        # A link is followed first: replacing it would leave its file behind, and two links are one log to lock.
        path = Path(os.path.realpath(path))
        elsewhere = _read_others(also, path)
        lock = _acquire_lock(path)
        try:
            data = _read_bytes(path) if os.path.exists(path) else b""
            records = parse_log(data, str(path))
            if not data:
                _write_atomically(path, render_header(PROGRAM))
            elif upgraded := _upgrade(data, records):
                data = upgraded
                _write_atomically(path, data)
            with _translated(path):
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                if data:
                    _repair_end(path, descriptor, data, records)
                return cls(path, records, descriptor, lock, elsewhere)
            except BaseException:
                os.close(descriptor)
                raise
        except BaseException:
            lock.release()
            raise

    def append(self, records: Sequence[TrialRecord]) -> None:
        """Add a batch of trials: one write and one fsync, after which they outlive a crash.

        OutputError where they cannot be written; then none of the batch is in the log, and the log is closed.
        """
        if self._descriptor is None:
            raise ValueError(f"{self.path}: append to a closed tuning log")
        batch = b"".join(render_record(record) for record in records)
        if not batch:
            return
        size_bytes = os.fstat(self._descriptor).st_size
        try:
            with _translated(self.path):
                _write_all(self._descriptor, batch)
                os.fsync(self._descriptor)
        except BaseException:
            with contextlib.suppress(OSError):  # the error under way says more; a torn end is cut off at the next open
                os.ftruncate(self._descriptor, size_bytes)
            self.close()
            raise
        self._add(records)

    def close(self) -> None:
        """Close the file and let other writers in; what was appended is on disk already."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._lock.release()

    def __enter__(self) -> TuningLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> LogRecords:
    """Read a log without locking it: a line that a writer has not finished yet is left out (`.torn`)."""
    return parse_log(_read_bytes(Path(path)), str(path))


def read_logs(paths: Sequence[str | os.PathLike[str]]) -> LogRecords:
    """Read several logs as one to look records up in, without locking any; a folder stands for its *.tune.jsonl.

    The first is the log that is appended to: counting and iterating show its records only, and it may be missing yet,
    which is a log without records. LogError where another is missing, or any is not a log. No paths are no records.
    """
    if not paths or os.path.isdir(paths[0]):
        return LogRecords(also=_read_others(paths))
    first, *others = paths
    own = read_log(first) if os.path.exists(first) else LogRecords(source=str(first))
    return LogRecords(own, source=own.source, torn=own.torn, also=_read_others(others, first))


def render_log(records: Iterable[TrialRecord]) -> bytes:
    """A whole log with these records; identical ones are kept once."""
    return render_header(PROGRAM) + b"".join(dict.fromkeys(render_record(record) for record in records))


def merge_logs(paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> LogRecords:
    """Write the records of several logs into one and return them; identical records are kept once.

    Those that `output` has already come first, then those of each path in turn, each in its order. The output is
    locked, and replaced in one step or left as it was; merging the same logs again changes nothing.
    """
    inputs = [read_log(path) for path in paths]
    for records in inputs:
        _warn_of_torn_end(records)
    return rewrite_log(output, lambda existing: itertools.chain(existing, *inputs))


def rewrite_log(path: str | os.PathLike[str], change: Callable[[LogRecords], Iterable[TrialRecord]]) -> LogRecords:
    """Replace a log by what `change` makes of its records, and return it; identical records are kept once.

    The log is locked, and replaced in one step or left as it was; a missing one has no records and is made.
    """
    target = Path(os.path.realpath(path))
    lock = _acquire_lock(target)
    try:
        existing = read_log(target) if os.path.exists(target) else LogRecords()
        _warn_of_torn_end(existing)
        data = render_log(change(existing))
        _write_atomically(target, data)
    finally:
        lock.release()
    return parse_log(data, str(path))


def _read_others(
    paths: Sequence[str | os.PathLike[str]], own: str | os.PathLike[str] | None = None
) -> list[TrialRecord]:
    """The records of logs that are read only, each file once; the log itself, of a shared folder for one, is none."""
    read = {os.path.realpath(own)} if own is not None else set()
    found: list[TrialRecord] = []
    for path in paths:
        for file in _list_logs(Path(path)):
            real = os.path.realpath(file)
            if real in read:
                continue
            read.add(real)
            records = read_log(file)
            _warn_of_torn_end(records)
            found += records
    return found


def _list_logs(path: Path) -> list[Path]:
    """The logs of a folder, sorted by name; what is no folder is a log itself."""
    if not path.is_dir():
        return [path]
    try:
        return sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIX))
    except OSError as exc:
        raise LogError(f"{path}: cannot read the folder of tuning logs: {exc.strerror}") from exc


def _warn_of_torn_end(records: LogRecords) -> None:
    if records.torn is not None:
        LOGGER.warning("%s", records.torn)


def _acquire_lock(path: Path) -> FileLock:
    """Take the lock beside a log, at once or never, and leave a note in it that says who holds it."""
    from filelock import FileLock, Timeout

    _refuse_special_file(path)
    if not path.parent.is_dir():  # filelock would make the folder, and a mistyped path would be a new log
        raise OutputError(f"{path}: cannot write the tuning log: no such folder", hint=f"mkdir -p {path.parent}")
    lock_path = path.with_name(path.name + ".lock")
    lock = FileLock(lock_path, blocking=False, thread_local=False)
    try:
        with _translated(lock_path):
            lock.acquire()
    except Timeout as exc:
        try:
            holder = lock_path.read_text(errors="replace").strip() or "another process"
        except FileNotFoundError:
            raise OutputError(f"{lock_path}: cannot make the lock file", hint="choose another folder") from exc
        except OSError:
            holder = "another process"
        raise LogError(
            f"{path} is in use by {holder}",
            hint="wait for it to end, or log to another file and join them with `tvmbridge log merge`",
        ) from exc
    with contextlib.suppress(OSError):  # the note only helps a message; the lock holds without it
        lock_path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return lock


def _refuse_special_file(path: Path) -> None:
    if os.path.exists(path) and not os.path.isfile(path):
        raise LogError(f"{path} is not a regular file, so not a tuning log", hint="give the path of a file")


def _read_bytes(path: Path) -> bytes:
    _refuse_special_file(path)  # a pipe or a terminal would be read for ever
    try:
        return path.read_bytes()
    except OSError as exc:
        raise LogError(f"{path}: cannot read the tuning log: {exc.strerror}") from exc


def _upgrade(data: bytes, records: LogRecords) -> bytes | None:
    """The bytes of a log of an older version with a header of this one; None where it is of this version already."""
    first, _, rest = data.partition(b"\n")
    header = parse_header(first, records.source)
    return render_header(header.created_by) + rest if header.version < LOG_VERSION else None


def _repair_end(path: Path, descriptor: int, data: bytes, records: LogRecords) -> None:
    """Make the file end with a whole line, so that the next record does not run into an unfinished one."""
    whole = whole_bytes(data, records)
    if whole == data:
        return
    _warn_of_torn_end(records)
    with _translated(path):
        os.ftruncate(descriptor, min(len(whole), len(data)))
        _write_all(descriptor, whole[len(data) :])
        os.fsync(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _write_atomically(path: Path, data: bytes) -> None:
    """Put a whole file in place, or leave what is there as it is."""
    with _translated(path):
        mode = (
            path.stat().st_mode & 0o777 if path.exists() else None
        )  # who may read a log goes on reading it, nobody else
        with replacing(path, mode) as stream:
            stream.write(data)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a write into an OutputError that names the file."""
    try:
        yield
    except TimeoutError:
        raise  # filelock's: the lock is taken, nothing is wrong with the file
    except OSError as exc:
        raise OutputError(
            f"{path}: cannot write the tuning log: {exc.strerror or exc}", hint="choose a folder that can be written"
        ) from exc
