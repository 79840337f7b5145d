"""The records of a tuning log in memory: parsed, counted, and looked up by kernel and target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tvmbridge.errors import LogError
from tvmbridge.tuning.record import TrialRecord, parse_header, parse_record, render_record

_ByKey = dict[tuple[str, str, bool], list[TrialRecord]]  # kernel, target, final


class LogRecords:
    """What a tuning log says; iterates over its records in the order of the file.

    source: where the records came from, for messages.
    torn: what was wrong with an unfinished last line, which is left out; None where the log ends whole.

    also: records from elsewhere, such as other logs. Looking up finds them too, those that are not here already;
    counting and iterating leave them out.

    A record is a trial of the search, or one of a final check: the two never count as each other.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord] = (),
        *,
        source: str = "",
        torn: str | None = None,
        also: Iterable[TrialRecord] = (),
    ) -> None:
        self.source = source
        self.torn = torn
        self._records: list[TrialRecord] = []
        self._by_key: _ByKey = {}
        self._elsewhere: _ByKey = {}
        self._add(records)
        if elsewhere := {render_record(record): record for record in also}:
            here = {render_record(record) for record in self._records}
            _index(self._elsewhere, (record for line, record in elsewhere.items() if line not in here))

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[TrialRecord]:
        return iter(tuple(self._records))

    def measured(self, kernel: str, target: str) -> tuple[TrialRecord, ...]:
        """List the trials of this kernel on this target, the failed ones included: none needs another measurement."""
        return self._find((kernel, target, False))

    def from_elsewhere(self, kernel: str, target: str) -> tuple[TrialRecord, ...]:
        """List those of the `measured` that came from elsewhere and are not in this log."""
        return tuple(self._elsewhere.get((kernel, target, False), ()))

    def trials_on(self, target: str) -> Iterator[TrialRecord]:
        """All trials of any kernel on this target, those from elsewhere too."""
        for by_key in (self._by_key, self._elsewhere):
            for (_, measured_on, final), records in by_key.items():
                if measured_on == target and not final:
                    yield from records

    def finals(self, kernel: str, target: str) -> tuple[TrialRecord, ...]:
        """List what the last final check measured of this kernel on this target; nothing where there was none."""
        finals = self._find((kernel, target, True))
        last = max((record.when for record in finals), default=None)
        return tuple(record for record in finals if record.when == last)

    def best(
        self, kernel: str, target: str, template: str | None = None, template_version: int | None = None
    ) -> TrialRecord | None:
        """Find the record with the lowest median time of this kernel on this target; None where none succeeded.

        What the last final check measured decides; where it has nothing to say, the trials do. Compare the times of two
        answers only where both are `final`, or neither. template, template_version: only records of that one. Among
        equal times the line that sorts first wins, so that the same records give the same answer in any order.
        """
        for records in (self.finals(kernel, target), self.measured(kernel, target)):
            candidates = [
                record
                for record in records
                if record.median_us is not None
                and template in (None, record.template)
                and template_version in (None, record.template_version)
            ]
            if candidates:
                return min(candidates, key=lambda record: (record.median_us, render_record(record)))
        return None

    def _find(self, key: tuple[str, str, bool]) -> tuple[TrialRecord, ...]:
        return (*self._by_key.get(key, ()), *self._elsewhere.get(key, ()))

    def _add(self, records: Iterable[TrialRecord]) -> None:
        added = list(records)
        self._records += added
        _index(self._by_key, added)


def _index(by_key: _ByKey, records: Iterable[TrialRecord]) -> None:
    for record in records:
        by_key.setdefault((record.kernel, record.target, record.final), []).append(record)


def parse_log(data: bytes, source: str) -> LogRecords:
    """Read a log from its bytes; no bytes at all are a fresh log.

    An unfinished last line (no newline, not a record) is left out and said in `.torn`. LogError, with the file and
    the line, for everything else that is not a log of this version or an older one.
    """
    if not data:
        return LogRecords(source=source)
    first, newline, rest = data.partition(b"\n")
    if not newline:
        first = b""  # the header is written in one piece with its newline, so a file without one is not ours
    version = parse_header(first, source).version
    lines = rest.split(b"\n")
    last = lines.pop()
    records = [parse_record(line, f"{source}:{number}", version) for number, line in enumerate(lines, start=2)]
    torn = None
    if last:
        number = len(lines) + 2
        try:
            records.append(parse_record(last, f"{source}:{number}", version))
        except LogError:
            torn = f"{source}:{number}: unfinished last line of {len(last)} bytes left out"
    return LogRecords(records, source=source, torn=torn)


def whole_bytes(data: bytes, records: LogRecords) -> bytes:
    """Cut the unfinished last line off the bytes of a log, and end the last line where only its newline is missing."""
    if not data:
        return data
    if records.torn is not None:
        return data[: data.rindex(b"\n") + 1]
    return data if data.endswith(b"\n") else data + b"\n"
