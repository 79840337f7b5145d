"""One line of a tuning log: the trial record and the header, as values and as text."""

from __future__ import annotations

import datetime
import math
from statistics import median
from typing import Annotated

import msgspec

from tvmbridge.errors import LogError

LOG_FORMAT = "tvmbridge-tuning-log"
LOG_VERSION = 2
EMULATED = " emulated"  # how the key of a target ends that is measured under emulation

# Everything that msgspec raises for bytes it cannot decode: it reports broken UTF-8 and deep nesting as Python does.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

ConfigValue = int | str | bool
UtcSeconds = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]


class TrialRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one trial measured: one config of one kernel on one target.

    kernel: key of the unscheduled kernel. target: `Target.key`. Both are compared as plain text.
    template, template_version: what gives the config its meaning.
    config: plain Python values only. times_us: one per repetition, plain floats; empty where the trial failed.
    error: why the trial failed, None where it did not. tvm: version that compiled the kernel.
    when: ISO 8601 in UTC to the second, "2026-01-31T09:00:00Z".
    final: whether it is no trial but the measurement of one of the best configs, or of the untuned choice, in the check
    that ends a tuning run: inside the network, in blocks that alternate, so that the records of one check, which share
    one `when`, compare with one another.
    emulated: whether it was measured under emulation. The target's key says so too, which keeps such records apart from
    those of real hardware wherever records are looked up.
    """

    kernel: str
    target: str
    template: str
    template_version: int
    config: dict[str, ConfigValue]
    times_us: tuple[float, ...]
    error: str | None
    tvm: str
    seed: int
    when: UtcSeconds
    final: bool = False
    emulated: bool = False

    def __post_init__(self) -> None:
        if not all(math.isfinite(time_us) and time_us > 0 for time_us in self.times_us):
            raise ValueError(f"times_us {self.times_us} are not all positive and finite")
        if bool(self.times_us) == (self.error is not None):
            raise ValueError("a trial has either times_us or an error")
        if self.emulated != self.target.endswith(EMULATED):
            raise ValueError(f"emulated is {self.emulated} and the target is {self.target[-80:]!r}")

    @property
    def median_us(self) -> float | None:
        """Median of the repetitions in microseconds; None where the trial failed."""
        return median(self.times_us) if self.times_us else None

    @property
    def config_key(self) -> str:
        """Canonical text of the config, equal for equal configs whatever the order of their keys.

        Unlike the dictionaries, it keeps 1 and true apart.
        """
        return render_config(self.config)


def now_utc() -> str:
    """This moment as a record's `when` says it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class LogHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First line of a tuning log."""

    format: str
    version: int
    created_by: str


class _AnyHeader(msgspec.Struct, frozen=True):
    """What the first line of every version has in common, newer ones included."""

    format: str
    version: int
    created_by: str = "a newer tvmbridge"


def render_config(config: dict[str, ConfigValue]) -> str:
    """Write a config as canonical JSON: sorted keys, no spaces."""
    return msgspec.json.encode(config, order="deterministic").decode()


def render_record(record: TrialRecord) -> bytes:
    """Write a record as its line, newline included: fields in declared order, config keys sorted.

    A value that `parse_record` would refuse is a programming mistake: TypeError or ValueError.
    """
    line = msgspec.json.encode(record, order="deterministic")
    try:
        msgspec.json.decode(line, type=TrialRecord)
    except msgspec.ValidationError as exc:
        raise ValueError(f"not a trial record: {exc}") from exc
    return line + b"\n"


def render_header(created_by: str) -> bytes:
    """Write the first line of a log of this version, newline included."""
    return msgspec.json.encode(LogHeader(format=LOG_FORMAT, version=LOG_VERSION, created_by=created_by)) + b"\n"


def parse_record(line: bytes, source: str, version: int = LOG_VERSION) -> TrialRecord:
    """Read one line of a log of that version.

    source: "file:line" for the message of the LogError that a damaged line gets.
    """
    try:
        record = msgspec.json.decode(line, type=TrialRecord)
        for name in ("final", "emulated"):
            if version < 2 and getattr(record, name):
                raise msgspec.ValidationError(f"version 1 has no field `{name}`")
        return record
    except _UNREADABLE as exc:
        raise LogError(
            f"{source}: not a record of a version {version} tuning log: {exc}",
            hint="take the file from a backup, or delete this line: only its trial is lost",
        ) from exc


def parse_header(line: bytes, source: str) -> LogHeader:
    """Read the first line. LogError where the file is foreign, damaged, or of a newer version."""
    try:
        found = msgspec.json.decode(line, type=_AnyHeader)
    except _UNREADABLE as exc:
        raise _foreign(source) from exc
    if found.format != LOG_FORMAT:
        raise _foreign(source)
    if found.version > LOG_VERSION:
        raise LogError(
            f"{source} is a version {found.version} tuning log, written by {found.created_by[:80]}; "
            f"this one reads versions up to {LOG_VERSION}",
            hint="upgrade tvmbridge",
        )
    try:
        header = msgspec.json.decode(line, type=LogHeader)
    except _UNREADABLE as exc:
        raise LogError(f"{source}:1: damaged header: {exc}", hint="take the file from a backup") from exc
    if header.version < 1:
        raise LogError(f"{source}:1: damaged header: there is no version {header.version}")
    return header


def _foreign(source: str) -> LogError:
    return LogError(
        f"{source} is not a tuning log: its first line is not a tvmbridge-tuning-log header",
        hint="give another path; the file was left as it is",
    )
